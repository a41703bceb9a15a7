package packettest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"testing"
	"time"
)

// The model tests. A part that learns and forgets can be right about any packet and wrong about a sequence
// of them: what it has learnt may be one packet old. So a model test drives it with long sequences of
// operations beside an oracle that learns nothing, and compares every packet that comes out, byte by byte,
// with what went in. A sequence is decoded from a byte string, so that one test is both a fuzz target and
// a run of millions of random steps:
//
//	func play(t *packettest.Tape) error {
//		part, flows := newPart(), []*packettest.Flow{t.Flow(), t.Flow()}
//		var want packettest.Ledger
//		for t.More() {
//			switch t.N(3) {
//			case 0: // a run of one shape
//				f, n := packettest.Pick(t, flows...), 1+t.N(1400)
//				for range t.Run() {
//					b := f.Packet(n)
//					part.put(b)
//					want.Sent("", b)
//					t.Step(1)
//				}
//			case 1:
//				for _, b := range part.get(1 + t.N(128)) {
//					if err := want.Came("", b); err != nil {
//						return err
//					}
//				}
//			…
//			}
//		}
//		return want.Empty()
//	}
//
//	func TestPartModel(t *testing.T) { packettest.Sequences(t, 1_000_000, play) }
//	func FuzzPartModel(f *testing.F) { packettest.FuzzSequences(f, play) }

// Play runs the sequence on a tape against a new part and a new oracle, and returns the first thing that was
// wrong. Its packets come from the tape alone. A panic counts as an error.
type Play func(*Tape) error

// longTime is how long Sequences goes on with WEFT_TEST_LONG=1, with other tapes in every run.
const longTime = 5 * time.Minute

// Sequences plays random tapes until their steps add up to that many: the same ones in every run, but for
// WEFT_TEST_LONG=1. A tape that fails is shortened for as long as it still does. The race detector, which has
// nothing to say about one goroutine, makes do with a twentieth: scripts/test runs all tests that are named
// …Model without it, too. WEFT_TEST_SEED=N begins with the tape of that seed, as a failure names it.
func Sequences(t *testing.T, steps int, play Play) {
	t.Helper()
	first, end := uint64(1), time.Time{}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		first, end = rand.Uint64(), time.Now().Add(longTime)
	}
	if seed := os.Getenv("WEFT_TEST_SEED"); seed != "" {
		var err error
		if first, err = strconv.ParseUint(seed, 10, 64); err != nil {
			t.Fatalf("WEFT_TEST_SEED: %v", err)
		}
	}
	if raceDetector {
		steps /= 20
	}
	done, tapes := 0, 0
	for seed := first; done < steps || time.Now().Before(end); seed++ {
		tape := randomTape(seed, 256<<(seed%5))
		err := safely(play, tape)
		if err != nil {
			t.Fatalf("tape of seed %d, after %d tapes and %d steps: %v\n%s", seed, tapes, done, err, shortest(play, tape.all))
		}
		done += tape.steps
		if tapes++; tapes == 20 && done == 0 {
			t.Fatal("no step was made")
		}
	}
	t.Logf("%d steps on %d tapes, from seed %d", done, tapes, first)
}

// FuzzSequences lets the fuzzer write the tape.
func FuzzSequences(f *testing.F, play Play) {
	for seed := range uint64(12) {
		f.Add(randomTape(seed, 32<<(seed%5)).all)
	}
	f.Fuzz(func(t *testing.T, tape []byte) {
		if err := safely(play, &Tape{all: tape[:min(len(tape), 8<<10)]}); err != nil {
			t.Fatal(err)
		}
	})
}

// shortest removes from a failing tape what it fails without, in a bounded number of tries: some fail by waiting.
func shortest(play Play, tape []byte) string {
	start := time.Now()
	err := safely(play, &Tape{all: tape})
	if err == nil {
		return "it does not fail again"
	}
	tries, end := 500, start.Add(20*time.Second)
	for size := len(tape) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(tape) && tries > 0 && time.Now().Before(end); tries-- {
			less := append(bytes.Clone(tape[:at]), tape[at+size:]...)
			if e := safely(play, &Tape{all: less}); e != nil {
				tape, err = less, e
			} else {
				at += size
			}
		}
	}
	return fmt.Sprintf("shortened to f.Add([]byte(%q)): %v", tape, err)
}

func safely(play Play, t *Tape) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return play(t)
}

// Tape is a byte string read as decisions. Behind its end every decision is 0.
type Tape struct {
	all   []byte
	at    int
	steps int
	fills int
}

func randomTape(seed uint64, n int) *Tape {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24),
		byte(seed >> 32), byte(seed >> 40), byte(seed >> 48), byte(seed >> 56)})
	_, _ = r.Read(b)
	return &Tape{all: b}
}

// More says whether the tape has not ended.
func (t *Tape) More() bool { return t.at < len(t.all) }

// Step counts n operations: packets, or whatever the part takes one at a time.
func (t *Tape) Step(n int) { t.steps += n }

// N decides among 0 … n-1; n is 1 to 65536. It takes one byte of tape, two for n > 256.
func (t *Tape) N(n int) int {
	if n > 256 {
		return (t.next()<<8 | t.next()) * n >> 16
	}
	return t.next() * n >> 8
}

// Chance is true once in n times, n ≤ 256, and false behind the end of the tape.
func (t *Tape) Chance(n int) bool { return t.N(n) == n-1 && n > 1 }

// Run is how often something is done in a row: a few times, or some dozens, or hundreds of times, so that
// a part comes to what it does after so many of a kind.
func (t *Tape) Run() int {
	switch b := t.next(); {
	case b < 144:
		return 1 + b%4
	case b < 240:
		return b - 140
	default:
		return 100 + (b-240)*32
	}
}

// Pick decides among several.
func Pick[T any](t *Tape, of ...T) T { return of[t.N(len(of))] }

// Fill fills b with bytes that no other Fill of the tape makes, so that an old byte is always a wrong one.
func (t *Tape) Fill(b []byte) {
	for len(b) > 0 {
		t.fills++
		b = b[copy(b, noise[t.fills*7919%(len(noise)/2):]):]
	}
}

func (t *Tape) next() int {
	if t.at >= len(t.all) {
		return 0
	}
	t.at++
	return int(t.all[t.at-1])
}

var noise = randomTape(0, 1<<19).all

// Same compares a packet that came with the one that was due.
func Same(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	first, differ := -1, 0
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			if differ++; first < 0 {
				first = i
			}
		}
	}
	return fmt.Errorf("%d bytes came, %d were due; %d differ, from byte %d:\n came %x\n due  %x", len(got), len(want), differ, first,
		got[:min(len(got), 96)], want[:min(len(want), 96)])
}

// Ledger is what is under way: packets in order, by any key (a flow, a queue; "" if all are in one order).
type Ledger struct {
	// Lossy: some packets may never come. Those that come are still in order.
	Lossy bool

	due map[string][][]byte
}

// Sent enters a packet. The ledger keeps b.
func (l *Ledger) Sent(key string, b []byte) {
	if l.due == nil {
		l.due = map[string][][]byte{}
	}
	l.due[key] = append(l.due[key], b)
}

// Came takes a packet out: the next one due, or, if some may be lost, one behind it.
func (l *Ledger) Came(key string, b []byte) error {
	due := l.due[key]
	if len(due) == 0 {
		return fmt.Errorf("key %q: a packet came that was never sent, or twice: %x", key, b[:min(len(b), 96)])
	}
	for i, d := range due {
		if bytes.Equal(d, b) {
			l.due[key] = due[i+1:]
			return nil
		}
		if !l.Lossy {
			break
		}
	}
	return fmt.Errorf("key %q, %d due: %w", key, len(due), Same(b, due[0]))
}

// Due is how many packets are under way.
func (l *Ledger) Due() (n int) {
	for _, due := range l.due {
		n += len(due)
	}
	return n
}

// Empty is an error while packets are under way.
func (l *Ledger) Empty() error {
	if n := l.Due(); n > 0 && !l.Lossy {
		return errors.New(fmt.Sprint(n, " packets never came"))
	}
	return nil
}
