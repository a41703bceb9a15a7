package probe

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// A flow in which something is in another's place is seen, whatever the distance: one byte, whole segments, powers of two, whole frames,
// another flow's, the other direction's.
func TestMisplacedBytesAreSeen(t *testing.T) {
	p := newPattern(1)
	at := func(d direction, flow int, pos uint64) []byte { return p.frame(d, flow, pos/frameSize)[pos%frameSize:] }
	const pos, size = 40*frameSize + 1398*7, 1398
	for name, stale := range map[string][]byte{
		"another flow":        at(toServer, 1, pos),
		"the other direction": at(toClient, 0, pos),
		"another session":     newPattern(2).frame(toServer, 0, pos/frameSize)[pos%frameSize:],
		"nothing":             make([]byte, size),
	} {
		check := flowCheck{p: p, dir: toServer, pos: pos}
		check.take(stale[:size])
		if check.Corrupt < size*9/10 || len(check.Damage) != 1 {
			t.Errorf("%s: %+v", name, check.Integrity)
		}
	}
	var shifts []uint64
	for k := range uint64(64) {
		shifts = append(shifts, k+1, (k+1)*1398, (k+1)*500, (k+1)*2048, (k+1)*65536)
		if k < 40 {
			shifts = append(shifts, (k+1)*frameSize)
		}
	}
	for _, shift := range shifts {
		check := flowCheck{p: p, dir: toServer, pos: pos}
		check.take(at(toServer, 0, pos-shift)[:size])
		if check.Corrupt < size*9/10 {
			t.Errorf("shifted by %d: %+v", shift, check.Integrity)
		}
	}
}

// What is right is taken for right, in reads of any length across frames, and one wrong byte is one.
func TestFlowCheck(t *testing.T) {
	p := newPattern(3)
	var sent []byte
	for n := range uint64(3) {
		sent = append(sent, p.frame(toServer, 5, n)...)
	}
	check := flowCheck{p: p, dir: toServer, flow: 5}
	for k, rest := 1, sent; len(rest) > 0; k = k*3 + 1 {
		n := min(k, len(rest))
		check.take(rest[:n])
		rest = rest[n:]
	}
	if check.Corrupt != 0 || check.Verified != 3*frameSize || check.Err() != nil {
		t.Fatalf("%+v", check.Integrity)
	}
	wrong := bytes.Clone(sent)
	wrong[frameSize+17] ^= 1
	check = flowCheck{p: p, dir: toServer, flow: 5}
	check.take(wrong)
	var corrupt *CorruptError
	if err := check.Err(); check.Corrupt != 1 || !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "flow 5, byte 131072: 1 of 131072 bytes differ, from byte 17; there are others") {
		t.Errorf("%+v: %v", check.Integrity, err)
	}
}

// Each bit of a datagram counts, header and length included.
func TestDatagram(t *testing.T) {
	p := newPattern(4)
	for _, size := range []int{probeHeader, probeHeader + 1, 36, 1372, maxPayload} {
		b := make([]byte, size)
		p.put(b, toServer, header{9, 12345})
		var good Integrity
		if h, ok := good.datagram(p, b, toServer); !ok || h != (header{9, 12345}) || good.Err() != nil || good.Verified != uint64(size) {
			t.Fatalf("%d bytes: %+v, %v: %+v", size, h, ok, good)
		}
		for bit := 0; bit < size*8; bit += 1 + size/40 {
			b[bit/8] ^= 1 << (bit % 8)
			var i Integrity
			if _, ok := i.datagram(p, b, toServer); ok || i.Corrupt == 0 || i.CorruptPackets != 1 {
				t.Errorf("%d bytes, bit %d: %+v", size, bit, i)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		for _, cut := range [][]byte{b[:size-1], b[:size/2], append(bytes.Clone(b), 0), nil} {
			var i Integrity
			if _, ok := i.datagram(p, cut, toServer); ok || i.CorruptPackets != 1 {
				t.Errorf("%d bytes cut to %d: %+v", size, len(cut), i)
			}
		}
		var i Integrity
		if _, ok := i.datagram(p, b, toClient); ok {
			t.Errorf("%d bytes: a request passes for its reply", size)
		}
		if size < 36 {
			continue
		}
		p.put(b, toServer, header{9, 12346})
		p.put(b[:probeHeader], toServer, header{9, 12345}) // the header of another length
		if _, ok := i.datagram(p, b, toServer); ok {
			t.Errorf("%d bytes: a header of another length passes", size)
		}
		other := bytes.Clone(b)
		p.put(b, toServer, header{9, 12345})
		copy(b[probeHeader:], other[probeHeader:])
		if _, ok := i.datagram(p, b, toServer); ok || !strings.Contains(i.Damage[len(i.Damage)-1], "bytes that this session sends elsewhere") {
			t.Errorf("%d bytes: the payload of the next one passes: %q", size, i.Damage)
		}
	}
}

// TestBlind: with verify=0 nothing is filled nor compared but headers, which tell one datagram from another.
func TestBlind(t *testing.T) {
	p := newPattern(5)
	p.blind = true
	b := make([]byte, 100)
	p.put(b, toServer, header{1, 2})
	if !bytes.Equal(b[probeHeader:], make([]byte, 100-probeHeader)) {
		t.Error("a payload is filled")
	}
	b[50] = 1
	var i Integrity
	if _, ok := i.datagram(p, b, toServer); !ok || i.Verified != probeHeader || i.Err() != nil {
		t.Errorf("a payload is compared: %+v", i)
	}
	b[3] = 1
	if _, ok := i.datagram(p, b, toServer); ok || i.Corrupt == 0 {
		t.Errorf("a damaged header passes: %+v", i)
	}
	target := serve(t, Config{})
	for test, verified := range map[string]bool{"tcp-stream": true, "tcp-stream:verify=0": false, "tcp-rr:verify=0": false} {
		s, err := Parse(test)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(t.Context(), Spec{Test: s.Test, Params: s.Params, Target: target, Duration: 50 * time.Millisecond})
		if err != nil || r.Bytes == 0 || r.Verified > 0 != verified {
			t.Errorf("%s: %d bytes, %d verified, %v", test, r.Bytes, r.Verified, err)
		}
	}
}

func TestVerifyingAllocatesNothing(t *testing.T) {
	p := newPattern(5)
	b := make([]byte, 1372)
	check := flowCheck{p: p, dir: toServer}
	var i Integrity
	seq := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		p.put(b, toServer, header{1, seq})
		if _, ok := i.datagram(p, b, toServer); !ok {
			t.Error("a good datagram is corrupt")
		}
		check.take(p.frame(toServer, 0, seq))
		seq++
	}); n != 0 {
		t.Errorf("a datagram and a frame allocate %v times", n)
	}
}

// BenchmarkVerify is what the pattern costs: for each datagram of a size, made and checked, and for the bytes of a stream.
func BenchmarkVerify(b *testing.B) {
	p := newPattern(6)
	for name, size := range map[string]int{"put 64": 36, "put 1360": 1332} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, size)
			b.SetBytes(int64(size))
			for n := range uint64(b.N) {
				p.put(buf, toServer, header{1, n})
			}
		})
		b.Run("check"+name[3:], func(b *testing.B) {
			buf := make([]byte, size)
			p.put(buf, toServer, header{1, 7})
			b.SetBytes(int64(size))
			var i Integrity
			for b.Loop() {
				i.datagram(p, buf, toServer)
			}
		})
	}
	b.Run("check stream", func(b *testing.B) {
		b.SetBytes(frameSize)
		buf := bytes.Clone(p.frame(toServer, 0, 0))
		for b.Loop() {
			check := flowCheck{p: p, dir: toServer}
			check.take(buf)
		}
	})
}
