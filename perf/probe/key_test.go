package probe

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// keyed serves on loopback with a key, and returns where.
func keyed(t *testing.T, key []byte, l Limit) netip.AddrPort {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	at, ended := make(chan netip.AddrPort, 1), make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Key: key, Limit: l, Ready: func(a netip.AddrPort) { at <- a }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return <-at
}

// TestKey: ends with the same key measure; one without, or with another, is told nothing, and sends nothing.
func TestKey(t *testing.T) {
	key := bytes.Repeat([]byte{7}, KeySize)
	at := keyed(t, key, Limit{})
	for _, test := range []string{"tcp-stream", "udp-rr", "udp-stream", "tcp-rr"} {
		r, err := Run(t.Context(), Spec{Test: test, Params: Params{"family": 4}, Target: at, Duration: 50 * time.Millisecond, Key: key, Source: netip.MustParseAddr("127.0.0.2")})
		if err != nil || r.Verified == 0 || r.Corrupt != 0 {
			t.Errorf("%s: %v, %+v", test, err, r.Integrity)
		}
	}
	if _, err := Run(t.Context(), Spec{Test: "tcp-rr", Target: at, Duration: 50 * time.Millisecond, Key: bytes.Repeat([]byte{8}, KeySize)}); !errors.Is(err, ErrProof) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := Run(t.Context(), Spec{Test: "tcp-rr", Target: at, Duration: 50 * time.Millisecond}); err == nil {
		t.Error("without a key it measures")
	}
	if _, err := Run(t.Context(), Spec{Test: "mixed", Target: at, Duration: 50 * time.Millisecond, Key: key}); !errors.Is(err, errMixed) {
		t.Errorf("mixed: %v", err)
	}
	if mtu, err := PathMTU(t.Context(), Spec{Target: at, Key: key}); err != nil || mtu < 65535 {
		t.Errorf("loopback carries %d bytes, %v", mtu, err)
	}
}

// TestNothingUnproven: whoever answers without the key gets sixteen random bytes, and nothing more.
func TestNothingUnproven(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var got atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write(make([]byte, 4096)) // an answer of some sort
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					got.Add(int64(n))
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	for _, test := range Tests {
		spec := Spec{Test: test.Name, Target: at, Duration: 50 * time.Millisecond, Key: make([]byte, KeySize)}
		if _, err := Run(t.Context(), spec); !errors.Is(err, ErrProof) && !errors.Is(err, errMixed) {
			t.Errorf("%s: %v", test.Name, err)
		}
	}
	if _, err := PathMTU(t.Context(), Spec{Target: at, Key: make([]byte, KeySize)}); !errors.Is(err, ErrProof) {
		t.Error(err)
	}
	if most := int64(nonceSize * (len(Tests) + 1)); got.Load() > most {
		t.Errorf("%d bytes were sent to one who proved nothing, at most %d are due", got.Load(), most)
	}
}

// TestLimit: what an end may send at most holds whatever it is asked for.
func TestLimit(t *testing.T) {
	l := Limit{Bits: 8000, Packets: 100}
	for _, c := range []struct{ asked, want float64 }{{0, 10}, {5, 5}, {1000, 10}} {
		if got := l.rate(c.asked, 100); got != c.want {
			t.Errorf("asked for %v packets a second of 100 bytes: %v, want %v", c.asked, got, c.want)
		}
	}
	if got := l.rate(0, 1); got != 100 {
		t.Errorf("packets of a byte: %v", got)
	}
	if got := (Limit{Packets: 100}).connections(); got != 25 {
		t.Errorf("connections of tcp-crr: %v", got)
	}
	if got := (Limit{}).rate(0, 1); got != 0 {
		t.Errorf("without a limit: %v", got)
	}
	if got := l.bytes(0); got != 1000 {
		t.Errorf("bytes %v", got)
	}
	key := bytes.Repeat([]byte{7}, KeySize)
	at := keyed(t, key, Limit{Packets: 20})
	const seconds = 0.5
	slow := Limit{Bits: 8e5}
	r, err := Run(t.Context(), Spec{Test: "udp-stream", Params: Params{"size": 128}, Target: at, Duration: seconds * 1e9, Key: key, Limit: slow})
	if most := slow.Bits / 8 / 100 * seconds * 1.2; err != nil || float64(r.Generated) > most+5 {
		t.Errorf("%d packets, %v; the limit gives %v", r.Generated, err, most)
	}
	r, err = Run(t.Context(), Spec{Test: "udp-open-rr", Params: Params{"rate": 2000}, Target: at, Duration: seconds * 1e9, Key: key})
	if err != nil || r.Transactions > 20*seconds+10 {
		t.Errorf("the far end answered %d requests, %v; its limit is 20 a second", r.Transactions, err)
	}
}
