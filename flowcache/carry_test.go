package flowcache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// TestCarries: flows of both inner families over both underlays are cached on both nodes, and what arrives is what was sent, each datagram once,
// with the TTL, DSCP and ECN that the stack gives it: while flows become cached, are cached, and are the stack's again.
func TestCarries(t *testing.T) {
	for family, name := range []string{"v4", "v6"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, family, nettest.ClusterOptions{PodMTU: 1430})
			for inner := range 2 {
				pingPong(t, r, inner)
			}
		})
	}
}

// pingPong sends numbered datagrams there and back, a window of them at a time, and has the cache forget now and then.
func pingPong(t *testing.T, r *rig, inner int) {
	const window, each = 16, 200
	a, b := netip.AddrPortFrom(r.Nodes[0].PodAddrs[inner], 10000), netip.AddrPortFrom(r.Nodes[1].PodAddrs[inner], 20000)
	ca, cb := socket(t, r.Nodes[0].Pod, a), socket(t, r.Nodes[1].Pod, b)
	headers := map[[2]int]int{}
	var mu sync.Mutex
	note := func(d received) {
		mu.Lock()
		defer mu.Unlock()
		headers[[2]int{d.ttl, d.tos}]++
	}
	go func() { // until its socket is closed
		buf := make([]byte, 65536)
		for {
			d, err := read(cb, buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			note(d)
			if _, err := cb.WriteToUDPAddrPort(datagram(d.number, 8+int(d.number%1300)), d.from); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
		}
	}()
	buf := make([]byte, 65536)
	sent, back, turned := uint64(0), uint64(0), 0
	exchange := func(n uint64) {
		t.Helper()
		for until := back + n; back < until; {
			for ; sent < until && sent < back+window; sent++ {
				if _, err := ca.WriteToUDPAddrPort(datagram(sent, 8+int(sent%1300)), b); err != nil {
					t.Fatal(err)
				}
			}
			if err := ca.SetReadDeadline(time.Now().Add(nettest.Patience)); err != nil {
				t.Fatal(err)
			}
			d, err := read(ca, buf)
			if err != nil {
				t.Fatalf("after %d of %d datagrams: %v", back, sent, err)
			}
			if d.number != back {
				turned++
			}
			note(d)
			back++
		}
	}
	cachedNow := func() {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			exchange(4)
			_, err := r.nodes[0].flow(unix.IPPROTO_UDP, a, b)
			_, other := r.nodes[1].flow(unix.IPPROTO_UDP, b, a)
			return errors.Join(err, other)
		})
	}
	for range often(3, 10) {
		cachedNow()
		before, err := r.nodes[0].flow(unix.IPPROTO_UDP, a, b)
		if err != nil {
			continue // something has changed at this very moment
		}
		exchange(each)
		after, err := r.nodes[0].flow(unix.IPPROTO_UDP, a, b)
		if err == nil && after.Since.Equal(before.Since) && (after.TxPackets < before.TxPackets+each || after.RxPackets < before.RxPackets+each) {
			t.Errorf("a cached flow of %d datagrams each way: %d out, %d in past the stack", each, after.TxPackets-before.TxPackets, after.RxPackets-before.RxPackets)
		}
		for _, n := range r.nodes {
			if rand.N(2) == 0 {
				n.cache.Forget()
			}
		}
		exchange(20)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(headers) != 1 || headers[[2]int{62, 0x29}] == 0 {
		t.Errorf("TTL and traffic class of what arrived: %v, want all 62 and 0x29", headers)
	}
	peers := r.nodes[0].Status().Hops
	if peers[0].TxPackets < each || peers[0].RxPackets < each {
		t.Errorf("the peer's counters say %d and %d", peers[0].TxPackets, peers[0].RxPackets)
	}
	t.Logf("%d datagrams there and back; %d in another order", back, turned)
}

// TestStreams: TCP in both directions at once while both caches forget again and again, beside rules that drop what is out of window.
func TestStreams(t *testing.T) {
	for family, name := range []string{"v4", "v6"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, family, nettest.ClusterOptions{PodMTU: 1430})
			for inner := range 2 {
				stream(t, r, inner)
			}
		})
	}
}

// TestStreamsWithoutOffloads: the same where segments are cut and sums are made in software, on the underlay or in the pods.
func TestStreamsWithoutOffloads(t *testing.T) {
	nettest.RequireTool(t, "ethtool")
	for _, where := range []string{"underlay", "pods"} {
		t.Run(where, func(t *testing.T) {
			r := newRig(t, 0, nettest.ClusterOptions{PodMTU: 1430})
			for _, n := range r.Nodes {
				ns := n.Pod
				if where == "underlay" {
					ns = n.NS
				}
				ns.MustRun(t, "ethtool", "-K", "eth0", "tx", "off", "sg", "off", "gso", "off", "tso", "off")
			}
			stream(t, r, 0)
			stream(t, r, 1)
		})
	}
}

func stream(t *testing.T, r *rig, inner int) {
	size := often(2<<20, 8<<20)
	at := netip.AddrPortFrom(r.Nodes[1].PodAddrs[inner], 5000)
	var l net.Listener
	var c net.Conn
	var err error
	r.Nodes[1].Pod.Do(func() { l, err = net.Listen("tcp", at.String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	r.Nodes[0].Pod.Do(func() { c, err = net.DialTimeout("tcp", at.String(), nettest.Patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	defer s.Close()
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()

	// Both ends send until the caches have forgotten often enough, and at least size bytes.
	var wg sync.WaitGroup
	enough := make(chan struct{})
	sums := make(chan string, 4)
	for i, end := range []net.Conn{c, s} {
		wg.Go(func() {
			sum, n := sha256.New(), 0
			block := make([]byte, 128<<10)
			rng := rand.NewChaCha8([32]byte{byte(i)})
			for done := false; !done || n < size; {
				select {
				case <-enough:
					done = true
				default:
				}
				_, _ = rng.Read(block)
				if _, err := end.Write(block); err != nil {
					t.Errorf("after %d bytes: %v", n, err)
					break
				}
				sum.Write(block)
				n += len(block)
			}
			_ = end.(*net.TCPConn).CloseWrite()
			sums <- fmt.Sprintf("%d: %d bytes %x", i, n, sum.Sum(nil))
		})
		wg.Go(func() {
			sum := sha256.New()
			n, err := io.Copy(sum, end)
			if err != nil {
				t.Errorf("after %d bytes: %v", n, err)
			}
			sums <- fmt.Sprintf("%d: %d bytes %x", 1-i, n, sum.Sum(nil))
		})
	}
	carried := uint64(0)
	for range often(4, 20) {
		nettest.Eventually(t, nettest.Patience, func() error {
			f, err := r.nodes[0].flow(unix.IPPROTO_TCP, local, at)
			_, other := r.nodes[1].flow(unix.IPPROTO_TCP, at, local)
			carried = max(carried, f.TxBytes)
			return errors.Join(err, other)
		})
		r.nodes[0].cache.Forget()
		r.nodes[1].cache.Forget()
	}
	close(enough)
	wg.Wait()
	close(sums)
	count := map[string]int{}
	for s := range sums {
		count[s]++
	}
	if len(count) != 2 {
		t.Errorf("what arrived is not what was sent: %v", count)
	}
	if carried == 0 {
		t.Error("nothing passed the stack by")
	}
	t.Logf("%v, %d bytes past the stack on the way out", count, carried)
}
