package packettest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"weft/packet"
)

// forgetful hands packets on, but what it remembers of the last one is wrong for the 65th of a length.
type forgetful struct {
	size, n int
	held    []byte
}

func (f *forgetful) pass(b []byte) []byte {
	if f.n++; len(b) != f.size {
		f.size, f.n = len(b), 1
	}
	defer func() { f.held = b }()
	if f.n == 65 {
		return append(bytes.Clone(f.held[:40]), b[40:]...)
	}
	return b
}

func playForgetful(t *Tape) error {
	var part forgetful
	var want Ledger
	flow := t.Flow()
	for t.More() {
		n := 1 + t.N(1000)
		for range t.Run() {
			b := flow.Packet(n)
			want.Sent("", b)
			if err := want.Came("", part.pass(b)); err != nil {
				return err
			}
			t.Step(1)
		}
	}
	return want.Empty()
}

// TestSequencesFind: a fault that only long runs show is found, and shown by a short tape.
func TestSequencesFind(t *testing.T) {
	for seed := uint64(1); ; seed++ {
		tape := randomTape(seed, 4096)
		if safely(playForgetful, tape) == nil {
			if seed == 10 {
				t.Fatal("not found")
			}
			continue
		}
		text := shortest(playForgetful, tape.all)
		if !strings.Contains(text, "differ, from byte") || len(text) > 700 {
			t.Errorf("shortened to %d bytes: %s", len(text), text)
		}
		return
	}
}

func TestSequencesSeePanics(t *testing.T) {
	if err := safely(func(*Tape) error { panic("here") }, &Tape{}); err == nil || !strings.Contains(err.Error(), "here") {
		t.Error(err)
	}
}

func TestTape(t *testing.T) {
	tape := &Tape{all: []byte{0, 255, 255, 255, 7}}
	for _, c := range []struct{ n, want int }{{10, 0}, {10, 9}, {65536, 65535}, {256, 7}, {5, 0}, {1000, 0}} {
		if got := tape.N(c.n); got != c.want {
			t.Errorf("N(%d) = %d, want %d", c.n, got, c.want)
		}
	}
	if tape.More() || tape.Chance(3) {
		t.Error("more behind the end")
	}
	counts := map[int]int{}
	for b := range 256 {
		n := (&Tape{all: []byte{byte(b)}}).Run()
		switch {
		case n < 1 || n > 600:
			t.Errorf("a run of %d", n)
		case n <= 4:
			counts[4]++
		case n > 64:
			counts[64]++
		}
	}
	if counts[4] < 100 || counts[64] < 20 {
		t.Errorf("%v", counts)
	}
	a, b := make([]byte, 100), make([]byte, 100)
	tape.Fill(a)
	tape.Fill(b)
	if bytes.Equal(a[:4], b[:4]) {
		t.Error("the same bytes twice")
	}
}

func TestLedger(t *testing.T) {
	one, two, three := []byte("one"), []byte("two"), []byte("three")
	for _, lossy := range []bool{false, true} {
		l := Ledger{Lossy: lossy}
		for _, b := range [][]byte{one, two, three} {
			l.Sent("a", b)
		}
		if err := l.Came("b", one); err == nil {
			t.Error("the other key's packet")
		}
		if err := l.Came("a", []byte("tWo")); err == nil {
			t.Error("a changed packet")
		}
		if err := l.Came("a", two); (err == nil) != lossy {
			t.Errorf("lossy %v: a gap: %v", lossy, err)
		}
		if err := l.Came("a", one); (err != nil) != lossy {
			t.Errorf("lossy %v: out of order: %v", lossy, err)
		}
		if err := l.Empty(); (err == nil) != lossy {
			t.Errorf("lossy %v: %v with %d under way", lossy, err, l.Due())
		}
	}
}

// TestFlow: what Flow makes is what the oracles of super-packets take for whole packets, and for the packets of one
// flow that may be merged.
func TestFlow(t *testing.T) {
	Sequences(t, 3000, func(tape *Tape) error {
		f := tape.Flow()
		for tape.More() {
			n, size := 1+tape.N(3000), 1+tape.N(1000)
			tape.Step(1)
			before := *f
			whole := []*Flow{f, &before}[1].Super(n, size)
			pieces, err := SplitOracle(f.Super(n, size))
			if err != nil {
				return err
			}
			if before.Seq != f.Seq || before.ID != f.ID || whole.GSO == GSONone {
				return errors.New("two flows that were one differ")
			}
			for i, b := range pieces {
				d, err := dissect(b)
				if err != nil {
					return fmt.Errorf("piece %d: %w", i, err)
				}
				if f.TCP && f.Flags == packet.TCPFlagACK || !f.TCP {
					if err := d.mergeable(); err != nil {
						return fmt.Errorf("piece %d: %w", i, err)
					}
				}
			}
			b, sound := f.Odd(n)
			if _, err := dissect(b); sound && err != nil {
				return fmt.Errorf("odd: %w", err)
			}
			if start := f.l4(); sound && Sum(b[start:], pseudo(b, start, map[bool]uint8{true: 6, false: 17}[f.TCP])) != 0xffff {
				return errors.New("odd: a wrong sum that is said to be right")
			}
		}
		return nil
	})
}

// TestLoad: what is loaded is the packet again once it is whole, in a slot and in borrowed memory.
func TestLoad(t *testing.T) {
	Sequences(t, 3000, func(tape *Tape) error {
		b := packet.NewBatch(1, 1500)
		for f := tape.Flow(); tape.More(); tape.Step(1) {
			want := f.Packet(1 + tape.N(3000))
			p := &b.Slots()[0]
			Load(p, want, Pick(tape, packet.ChecksumComplete, packet.ChecksumPartial, packet.ChecksumVerified))
			if err := Same(Whole(p), want); err != nil {
				return err
			}
		}
		return nil
	})
}
