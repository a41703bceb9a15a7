package pathmtu

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/internal/echo"
)

var inner = netip.MustParseAddr("10.244.2.1")

// path is one that carries so many bytes; of what fits it loses one in so many.
type path struct {
	carries, loss int
	silent        bool
	also          int // bytes of a second one beside it, which every other packet takes; 0 = there is none
	asked         int
	random        *rand.Rand
}

func (p *path) ask(_ context.Context, to netip.Addr, length, tries int, wait time.Duration) (echo.Reply, error) {
	if to != inner {
		return echo.Reply{}, fmt.Errorf("asked %v", to)
	}
	p.asked++
	carries := p.carries
	if p.also > 0 && p.asked%2 == 0 {
		carries = p.also
	}
	for range tries {
		time.Sleep(time.Millisecond)
		if !p.silent && length <= carries && (p.loss == 0 || p.random.IntN(p.loss) > 0) {
			return echo.Reply{Took: time.Millisecond}, nil
		}
		time.Sleep(wait)
	}
	return echo.Reply{}, echo.ErrSilent
}

func TestMeasure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			path  path
			peer  Peer
			want  int
			known bool
			most  int // packets
		}{
			"wide":                        {path{carries: 9000}, Peer{Whole: 1450}, 1450, true, 2},
			"exactly so":                  {path{carries: 1450}, Peer{Whole: 1450}, 1450, true, 2},
			"a byte less":                 {path{carries: 1449}, Peer{Whole: 1450}, 1449, true, 20},
			"narrow":                      {path{carries: 1350}, Peer{Whole: 1450}, 1350, true, 20},
			"as somebody says":            {path{carries: 1350}, Peer{Whole: 1450, Narrowed: 1350, Lied: true}, 1350, true, 6},
			"narrower than somebody says": {path{carries: 1300}, Peer{Whole: 1450, Narrowed: 1350}, 1300, true, 20},
			"wider than somebody says":    {path{carries: 1400}, Peer{Whole: 1450, Narrowed: 1350}, 1400, true, 20},
			"somebody lies":               {path{carries: 1450}, Peer{Whole: 1450, Narrowed: 1350, Lied: true}, 1450, true, 1 + doubt},
			"one of two ways is narrow":   {path{carries: 1450, also: 1350}, Peer{Whole: 1450, Narrowed: 1350, Lied: true}, 0, false, 1 + doubt},
			"nobody answers":              {path{silent: true}, Peer{Whole: 1450}, 0, false, 1},
			"nothing but the smallest":    {path{carries: small}, Peer{Whole: 1450}, 0, false, 10},
			"pings up to so many bytes":   {path{carries: 576}, Peer{Whole: 1450, Narrowed: 576}, 0, false, 10},
			"the floor":                   {path{carries: floor4}, Peer{Whole: 1450}, floor4, true, 30},
			"less than the floor":         {path{carries: floor4 - 1}, Peer{Whole: 1450}, 0, false, 10},
			"never as wide":               {path{carries: 1000}, Peer{Whole: floor4}, 0, false, 10},
		} {
			c.peer.Inner = inner
			p := New(nil, nil, zaptest.NewLogger(t))
			p.ask = c.path.ask
			if got, known := p.measure(t.Context(), c.peer); known != c.known || known && got != c.want || c.path.asked > c.most {
				t.Errorf("%s: %d, %v after %d packets; want %d, %v after %d at most", name, got, known, c.path.asked, c.want, c.known, c.most)
			}
		}
	})
}

// TestLoss: on a path that loses one packet in five, no width is made up.
func TestLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(nil, nil, zaptest.NewLogger(t))
		made := 0
		for seed := range uint64(1000) {
			way := path{carries: 1450, loss: 5, random: rand.New(rand.NewPCG(seed, 1))}
			p.ask = way.ask
			if got, known := p.measure(t.Context(), Peer{Inner: inner, Whole: 1450}); known && got != 1450 {
				made++
			}
		}
		if made > 1 {
			t.Errorf("of 1000 visits, %d made up that the path is narrow", made)
		}
	})
}

// TestDue: who is new, or whose path is another, is visited at once, all others in their turn; and not more of them than may be.
func TestDue(t *testing.T) {
	now, book := time.Unix(1000, 0), map[netip.Addr]visited{}
	peers := make([]Peer, 3*rate)
	for i := range peers {
		peers[i] = Peer{Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Whole: 1450}
	}
	visits := func(after time.Duration, want ...int) {
		t.Helper()
		now = now.Add(after)
		var got []int
		for _, p := range due(book, peers, rate, now) {
			got = append(got, int(p.Endpoint.As4()[3]))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("visited %v, want %v", got, want)
		}
	}
	all := func(from int) (list []int) {
		for i := range rate {
			list = append(list, from+i)
		}
		return list
	}
	visits(0, all(0)...)
	visits(look, all(rate)...)
	visits(look, all(2*rate)...)
	visits(look)
	peers[7].Whole, peers[8].Narrowed = 1400, 1300
	visits(look, 7, 8)
	visits(soon, 8)
	peers = peers[20:]
	visits(usual, all(20)...)
	if len(book) != rate {
		t.Errorf("%d peers are in the book", len(book))
	}
}

// TestRun: what is found out is told, with when it was sent.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		way := path{carries: 1350}
		peer := Peer{Node: "b", Endpoint: netip.MustParseAddr("192.0.2.2"), Inner: inner, Whole: 1450}
		type told struct {
			carries int
			ago     time.Duration
		}
		found := make(chan told, 1)
		p := New(func() []Peer { return []Peer{peer} }, func(is Peer, carries int, at time.Time) {
			if is != peer {
				t.Errorf("%+v", is)
			}
			found <- told{carries, time.Since(at)}
		}, zaptest.NewLogger(t))
		p.ask = way.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		if f := <-found; f.carries != 1350 || f.ago <= 0 || f.ago > 10*time.Second {
			t.Errorf("%+v", f)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
