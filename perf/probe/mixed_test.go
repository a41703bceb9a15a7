package probe

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMixed: every shape speaks over every family that is asked for, no end offers more than its rate, and nothing is lost on loopback.
func TestMixed(t *testing.T) {
	const rate, duration = 1e7, 500 * time.Millisecond
	for _, c := range []struct {
		listen   string
		family   float64
		families []int
	}{{"127.0.0.1:0", 0, []int{4, 6}}, {"[::1]:0", 0, []int{4, 6}}, {"127.0.0.1:0", 4, []int{4}}, {"[::1]:0", 6, []int{6}}} {
		target := serve(t, Config{Listen: netip.MustParseAddrPort(c.listen)})
		r, err := Run(context.Background(), Spec{Test: "mixed", Params: Params{"rate": rate, "family": c.family}, Target: target, Duration: duration})
		if err != nil {
			t.Fatal(err)
		}
		if want := len(shapes) * len(c.families); len(r.Shapes) != want || r.Corrupt != 0 || len(r.SendErrors) > 0 {
			t.Errorf("%+v: %d shapes, want %d: %+v", c, len(r.Shapes), want, r)
		}
		for _, f := range r.Shapes {
			// What a spell of one shape needs may not gather in so short a time.
			if !slices.Contains(c.families, f.Family) || f.Lost > 0 || f.Sent != f.Received {
				t.Errorf("%+v", f)
			}
		}
		// Both ends, and for each shape one message more than has gathered.
		if most := uint64(2*rate/8*duration.Seconds()) + uint64(2*len(r.Shapes)*maxPayload); r.Verified == 0 || r.Verified > most {
			t.Errorf("%d bytes, at most %d are due", r.Verified, most)
		}
	}
}

// TestMixedNeedsBothFamilies: a server of one family says so, and what to give.
func TestMixedNeedsBothFamilies(t *testing.T) {
	h := newHosts(t, 1500)
	h.far.MustRun(t, "ip", "-6", "addr", "flush", "dev", "eth0")
	_, err := h.run(Spec{Test: "mixed", Duration: 100 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "give family=4 or family=6") {
		t.Errorf("got %v", err)
	}
	r, err := h.run(Spec{Test: "mixed", Params: Params{"family": 4}, Duration: 100 * time.Millisecond})
	if err != nil || r.Verified == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestMixedAcrossASmallerHop: what fits the link and not the path is found out before the traffic.
func TestMixedAcrossASmallerHop(t *testing.T) {
	h := newHosts(t, 1500)
	for _, far := range []string{"192.0.2.2", "2001:db8::2"} {
		h.near.MustRun(t, "ip", "route", "add", far, "dev", "eth0", "mtu", "1300")
	}
	r, err := h.run(Spec{Test: "mixed", Duration: 300 * time.Millisecond})
	if err != nil || r.Payload != 1300-ipv4Header-udpHeader || r.Corrupt > 0 {
		t.Errorf("payload %d, %+v, %v", r.Payload, r.Integrity, err)
	}
}

// TestMixedIsCancelled: at any moment, at once and with nothing left behind.
func TestMixedIsCancelled(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("run", func(t *testing.T) {
		target := serve(t, Config{})
		for after := time.Duration(0); after < 40*time.Millisecond; after += 3 * time.Millisecond {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			_, err := Run(ctx, Spec{Test: "mixed", Target: target, Duration: time.Hour})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %s: %v", after, err)
			}
			cancel()
		}
	})
	noMoreThan(t, before)
}
