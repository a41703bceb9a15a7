package flowcache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/control"
	"weft/hostnet"
	"weft/internal/ipnet"
	"weft/internal/nettest"
)

// kinds are the changes that TestForgets makes.
var kinds = []string{"move", "our rule here", "our rule there", "a rule here", "a rule there", "a route there", "a pod there"}

// changes is how many of them it makes with each inner family: each kind once.
func changes(t *testing.T) int {
	if text := os.Getenv("WEFT_TEST_CHANGES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return n / 2
	}
	return often(len(kinds), 500)
}

// place is where packets of the test may arrive, a set.
type place uint32

const (
	nowhere place = 0
	atB     place = 1
	atC     place = 2
)

// identified is a stream of datagrams from a pod, each with the number of the last step that was over when it was sent.
type identified struct {
	t       *testing.T
	mu      sync.Mutex
	steps   []place // where what is sent after a step may arrive
	what    string  // the newest
	arrived map[place]int
	sent    int // since the last step
}

// expect says where what is sent from now on may arrive.
func (s *identified) expect(p place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, p)
	s.arrived, s.sent = map[place]int{}, 0
}

// send sends a datagram; no step begins meanwhile.
func (s *identified) send(send func(step uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
	send(uint64(len(s.steps) - 1))
}

// hear takes note of a datagram. One that is late may take any way that was right since it was sent.
func (s *identified) hear(at place, step uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	may := nowhere
	for _, p := range s.steps[step:] {
		may |= p
	}
	if at&may == 0 {
		s.t.Errorf("a datagram that was sent after step %d, since when it may arrive at %b, arrived at %b: %s", step, may, at, s.what)
	}
	if step == uint64(len(s.steps)-1) {
		s.arrived[at]++
	}
}

func (s *identified) count(at place) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived[at]
}

// TestForgets: after a change was acknowledged no datagram takes the old way, whoever made it: routes move to another peer, a rule of ours
// or of somebody else's begins to drop, at either end, a pod is deleted and its address is another pod's. 1,000 changes with WEFT_TEST_LONG=1, others with
// WEFT_TEST_CHANGES.
func TestForgets(t *testing.T) {
	for _, inner := range []int{0, 1} {
		t.Run([]string{"v4", "v6"}[inner], func(t *testing.T) { forgets(t, inner, changes(t)) })
	}
}

func forgets(t *testing.T, inner, n int) {
	r := newRig(t, 0, nettest.ClusterOptions{Nodes: 3, PodMTU: 1430})
	a, b, c := r.Nodes[0], r.Nodes[1], r.Nodes[2]
	moving := b.PodAddrs[inner] // both have it; who gets packets for it is for node a to know
	if err := errors.Join(c.Pod.AddAddrs("eth0", ipnet.Host(moving)), c.NS.AddRoute(ipnet.Host(moving), netip.Addr{}, c.PodDevice)); err != nil {
		t.Fatal(err)
	}
	states := map[place]control.State{atB: r.state(0)}
	moved := r.state(0)
	moved.Nodes[0].Prefixes, moved.Nodes[1].Prefixes = moved.Nodes[1].Prefixes, moved.Nodes[0].Prefixes
	states[atC] = moved
	own := r.state(2)                                                                                         // node c's, which answers for it
	own.Self.Prefixes = append(own.Self.Prefixes[:2:2], netip.PrefixFrom(moving, moving.BitLen()-2).Masked()) // the node itself has the second address of these four
	if err := r.nodes[2].Apply(own); err != nil {
		t.Fatal(err)
	}

	s := &identified{t: t}
	s.expect(atB)
	from, to := netip.AddrPortFrom(a.PodAddrs[inner], 10000), netip.AddrPortFrom(moving, 20000)
	sender := socket(t, a.Pod, from)
	serve := func(ns *nettest.NS, at place) *net.UDPConn {
		l := socket(t, ns, to)
		go func() {
			buf := make([]byte, 2048)
			for {
				d, err := read(l, buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				s.hear(at, d.number>>32)
				_, _ = l.WriteToUDPAddrPort(datagram(d.number, 64), d.from) // its way back may be closed
			}
		}()
		return l
	}
	sb := serve(b.Pod, atB)
	serve(c.Pod, atC)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for i := uint64(0); ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s.send(func(step uint64) {
				_, _ = sender.WriteToUDPAddrPort(datagram(step<<32|i&0xffffffff, 64), to) // ICMP of a way that is closed is an error of it
			})
		}
	})
	wg.Go(func() { // what comes back
		buf := make([]byte, 2048)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = sender.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = read(sender, buf)
		}
	})

	at := atB
	nodeOf := map[place]int{atB: 1, atC: 2}
	cachedAt := func(p place) {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			f, err := r.nodes[0].flow(unix.IPPROTO_UDP, from, to)
			_, other := r.nodes[nodeOf[p]].flow(unix.IPPROTO_UDP, to, from)
			if err := errors.Join(err, other); err != nil {
				return err
			}
			if want := r.Nodes[nodeOf[p]].Name; f.Peer != want {
				return fmt.Errorf("it is cached towards %s, not %s", f.Peer, want)
			}
			if s.count(p) == 0 {
				return errors.New("nothing arrives")
			}
			return nil
		})
	}
	// heard waits until a node has heard of somebody else's change: from then on it is acknowledged.
	heard := func(n *running, news uint64) {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			n.cache.mu.Lock()
			defer n.cache.mu.Unlock()
			if n.cache.news == news {
				return errors.New("it has heard of no change")
			}
			return nil
		})
	}
	news := func(n *running) (news uint64) { // with none of an earlier change under way
		t.Helper()
		since := time.Now()
		nettest.Eventually(t, nettest.Patience, func() error {
			n.cache.mu.Lock()
			defer n.cache.mu.Unlock()
			if n.cache.news != news {
				news, since = n.cache.news, time.Now()
			}
			if time.Since(since) < 50*time.Millisecond {
				return errors.New("there is news all the time")
			}
			return nil
		})
		return news
	}
	quiet := func() { // so many were sent that must not arrive
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.sent < 50 {
				return fmt.Errorf("only %d datagrams were sent", s.sent)
			}
			return nil
		})
	}
	drop := func(dst netip.Addr) hostnet.Want {
		offset, family := uint32(16), byte(unix.NFPROTO_IPV4)
		if dst.Is6() {
			offset, family = 24, unix.NFPROTO_IPV6
		}
		return hostnet.Want{Tables: []hostnet.Table{{Name: "weft-test", Family: nftables.TableFamilyINet, Chains: []hostnet.TableChain{{
			Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			Rules: [][]expr.Any{{
				&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(dst.AsSlice()))},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: dst.AsSlice()}, &expr.Verdict{Kind: expr.VerdictDrop}}}}}}}}
	}
	made := map[string]int{}
	var order []int // of kinds, each as often as the others
	for range n {
		cachedAt(at)
		if len(order) == 0 {
			order = rand.Perm(len(kinds))
		}
		kind := kinds[order[0]]
		if at == atC && kind == "a pod there" {
			kind = "move"
		} else {
			order = order[1:]
		}
		made[kind]++
		far := r.nodes[nodeOf[at]]
		s.mu.Lock()
		s.what = kind
		s.mu.Unlock()
		s.expect(atB | atC) // while it is being made
		switch kind {
		case "move":
			at = atB + atC - at
			if err := r.nodes[0].Apply(states[at]); err != nil {
				t.Fatal(err)
			}
			s.expect(at)
		case "our rule here", "our rule there":
			host := r.nodes[0].host
			if kind == "our rule there" {
				host = far.host
			}
			if err := host.Apply("test", drop(moving)); err != nil {
				t.Fatal(err)
			}
			s.expect(nowhere)
			quiet()
			s.expect(at) // before packets may pass again
			if err := host.Apply("test", hostnet.Want{}); err != nil {
				t.Fatal(err)
			}
		case "a rule here", "a rule there":
			node, ns := r.nodes[0], a.NS
			if kind == "a rule there" {
				node, ns = far, r.Nodes[nodeOf[at]].NS
			}
			family := map[bool]string{true: "ip", false: "ip6"}[moving.Is4()]
			before := news(node)
			ns.MustRun(t, "nft", fmt.Sprintf("table inet later { chain forward { type filter hook forward priority 10; %s daddr %v drop; }; }", family, moving))
			heard(node, before)
			s.expect(nowhere)
			quiet()
			s.expect(at) // before packets may pass again
			ns.MustRun(t, "nft", "delete table inet later")
		case "a route there":
			ns := r.Nodes[nodeOf[at]].NS
			ns.MustRun(t, "ip", "route", "replace", "blackhole", moving.String(), "metric", "1") // behind the other one, until that goes
			before := news(far)
			ns.MustRun(t, "ip", "route", "del", moving.String(), "dev", "pod0")
			heard(far, before)
			s.expect(nowhere)
			quiet()
			s.expect(at)
			ns.MustRun(t, "ip", "route", "add", moving.String(), "dev", "pod0")
			ns.MustRun(t, "ip", "route", "del", "blackhole", moving.String(), "metric", "1")
		case "a pod there": // its link goes, and another pod gets the address
			before := news(far)
			b.NS.MustRun(t, "ip", "link", "del", "pod0")
			heard(far, before)
			s.expect(nowhere)
			quiet()
			sb.Close()
			s.expect(at)
			again := nettest.New(t)
			b.Pod = again
			attachPod(t, b)
			sb = serve(again, atB)
		}
	}
	t.Logf("%d changes: %v", n, made)
}

// attachPod joins an empty namespace to its node as nettest.Build does.
func attachPod(t *testing.T, n *nettest.ClusterNode) {
	t.Helper()
	gw4, gw6 := netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")
	nettest.Pair(t, nettest.End{NS: n.NS, Dev: n.PodDevice, Addrs: []netip.Prefix{ipnet.Host(gw4), netip.PrefixFrom(gw6, 64)}},
		nettest.End{NS: n.Pod, Dev: "eth0", Addrs: []netip.Prefix{ipnet.Host(n.PodAddrs[0]), ipnet.Host(n.PodAddrs[1])}}, 1430)
	for i, gw := range []netip.Addr{gw4, gw6} {
		if err := errors.Join(n.NS.AddRoute(ipnet.Host(n.PodAddrs[i]), netip.Addr{}, n.PodDevice), n.Pod.AddRoute(ipnet.Everything(gw), gw, "eth0")); err != nil {
			t.Fatal(err)
		}
	}
}
