package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weft/internal/nettest"
)

// waitLong ends a wait for something that takes a fraction of it, however busy the machine.
const waitLong = nettest.Patience

// guarded applies w and runs the Host until the test ends. It returns the owner's channel.
func (b *bench) guarded(w Want) (changed <-chan struct{}) {
	b.t.Helper()
	b.apply(w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.host.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run = %v", err)
		}
	})
	return b.host.Changed("test")
}

// TestRunPutsBack: whatever is removed or changed behind our back returns.
func TestRunPutsBack(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	right := b.withoutIndex()
	b.guarded(sample())
	for _, cmd := range []string{
		"ip route del 10.244.2.0/24",
		"ip route replace 10.244.2.0/24 via 192.0.2.2 proto static",
		"ip -6 route del fd00:10:244:2::/64",
		"ip route del unreachable 10.244.0.0/16 metric 4294960000",
		"ip neigh del 10.244.2.0 dev weft-vx4",
		"ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 dev weft-vx4 nud permanent",
		"bridge fdb del 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 self",
		"bridge fdb add 02:00:00:00:00:55 dev weft-vx4 dst 192.0.2.55 self permanent",
		"ip addr del 10.244.1.1/32 dev weft-vx4",
		"ip addr flush dev weft-vx4",
		"ip link set weft-vx4 down",
		"ip link set weft-vx4 mtu 1200",
		"ip link del weft-vx4",
		"ip link add weft-stray type bridge",
		"ip route flush proto 87",
	} {
		before := b.host.Repairs()
		args := strings.Fields(cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
		nettest.Eventually(t, waitLong, func() error {
			if got := b.withoutIndex(); !slices.Equal(got, right) {
				return fmt.Errorf("after %q the kernel has\n%s\nwant\n%s", cmd, strings.Join(got, "\n"), strings.Join(right, "\n"))
			}
			if b.host.Repairs() == before {
				return fmt.Errorf("after %q no repair was counted", cmd)
			}
			return nil
		})
	}
}

// TestWatchHearsWhatConcernsUs: a change of the underlay's MTU wakes the caller, which derives its own from it; what
// happens to other devices does not.
func TestWatchHearsWhatConcernsUs(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	fd, err := b.host.listen()
	if err != nil {
		t.Fatal(err)
	}
	news := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.host.follow(ctx, fd, func() { news <- struct{}{} })
	}()
	defer func() { cancel(); <-ended }()

	// None of these concerns us; the last command does, and notifications keep their order.
	for _, cmd := range []string{
		"ip link add pod1 type veth peer name pod2", "ip link set pod1 up", "ip addr add 10.1.1.1/24 dev pod1",
		"ip route add 10.9.0.0/16 dev eth0", "ip neigh add 192.0.2.50 lladdr 02:00:00:00:00:50 dev eth0 nud permanent",
		"ip link del pod1",
	} {
		args := strings.Fields(cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
	}
	// Nor does what Apply itself does.
	more := sample()
	more.Routes = append(more.Routes, route("10.244.3.0/24", "10.244.3.0", "10.244.1.1"))
	b.apply(more)
	b.apply(sample())
	b.ip("route", "add", "10.244.4.0/24", "dev", "weft-vx4", "proto", "87") // exactly one notification: a route like ours
	expect := func(n int, what string) {
		t.Helper()
		for i := range n {
			select {
			case <-news:
			case <-time.After(waitLong):
				t.Fatalf("%s: %d notifications, want %d", what, i, n)
			}
		}
	}
	expect(1, "a route of ours")
	b.ip("link", "set", "eth0", "mtu", "1400")
	expect(1, "the underlay's MTU")
	for len(news) > 0 { // a device may tell twice
		<-news
	}
	b.ip("addr", "del", "192.0.2.1/24", "dev", "eth0")
	expect(1, "the underlay's address")
}

// TestOverrunIsNews: when the kernel drops notifications, that alone wakes the caller, and the next are heard.
func TestOverrunIsNews(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	listener, err := b.host.listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.SetReceiveBufferSize(1, false); err != nil { // the least there is
		t.Fatal(err)
	}
	var batch strings.Builder // of what does not concern us
	for i := range 500 {
		fmt.Fprintf(&batch, "route add 172.16.%d.%d dev eth0\n", i>>8, i&255)
	}
	file := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	b.ip("-batch", file)

	news := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.host.follow(ctx, listener, func() { news <- struct{}{} })
	}()
	defer func() { cancel(); <-ended }()
	expect := func(what string) {
		t.Helper()
		select {
		case <-news:
		case <-time.After(waitLong):
			t.Fatalf("%s was not told", what)
		}
	}
	expect("the overrun")
	b.ip("route", "del", "10.244.2.0/24")
	expect("a route of ours")
}

// TestRunSurvivesFlap: thousands of objects go at once, and return.
func TestRunSurvivesFlap(t *testing.T) {
	b := newBench(t)
	w := many(t, 5000)
	b.apply(w)
	<-b.guarded(w)
	b.ip("link", "set", "weft-vx4", "down") // thousands of notifications at once
	nettest.Eventually(t, waitLong, func() error {
		n, err := b.count()
		if err == nil && n != [3]int{5000, 5000, 5000} {
			err = fmt.Errorf("%d routes, neighbours, FDB entries, want 5000 each", n)
		}
		return err
	})
}

func TestRunEndsWithContext(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.host.Run(ctx) }()
	for i := range 3 { // the first at the start, the others by the belt alone
		select {
		case <-b.host.Changed("test"):
		case <-time.After(waitLong):
			t.Fatalf("told %d times", i)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

// TestFollow: who Follows is told of what the Host changes, and not of looks that find all as it is to be.
func TestFollow(t *testing.T) {
	b := newBench(t)
	var told atomic.Int32
	b.host.Follow(func() { told.Add(1) })
	changed := b.guarded(sample())
	looks := func(n int) {
		t.Helper()
		for range n {
			select {
			case <-changed:
			case <-time.After(waitLong):
				t.Fatal("nobody looks")
			}
		}
	}
	looks(2) // the links' own news is over
	quiet := told.Load()
	if quiet == 0 {
		t.Fatal("not told of the first Want")
	}
	nettest.Eventually(t, waitLong, func() error {
		before := told.Load()
		looks(3)
		if now := told.Load(); now != before {
			return fmt.Errorf("told %d times in three looks", now-before)
		}
		return nil
	})
	before := told.Load()
	b.apply(sample())
	if now := told.Load(); now != before {
		t.Errorf("told %d times of what was wanted before", now-before)
	}
	more := sample()
	more.Routes = append(more.Routes, route("10.244.3.0/24", "10.244.3.0", "10.244.1.1"))
	b.apply(more)
	if told.Load() == before {
		t.Error("not told of another Want")
	}
	before = told.Load()
	b.ip("route", "del", "10.244.3.0/24")
	nettest.Eventually(t, waitLong, func() error {
		if told.Load() == before {
			return errors.New("not told of what was put back")
		}
		return nil
	})
}
