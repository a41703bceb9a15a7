// Package e2e is the namespace suite: real daemons on nodes made of network namespaces, written
// once and run over every mode that the catalog has.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/catalog"
	"weft/catalog/mode"
	"weft/internal/nettest"
)

// each runs a test over every mode, on an underlay of one family: every mode meets both, in tests that take turns. With
// WEFT_TEST_FAMILIES=both (scripts/test-long) every test does.
func each(t *testing.T, test func(t *testing.T, mode string, family int)) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for i, m := range catalog.Modes {
		families := []int{4, 6}
		if os.Getenv("WEFT_TEST_FAMILIES") != "both" {
			turn := (i + len(t.Name())) % 2
			families = families[turn : turn+1]
		}
		for _, family := range families {
			t.Run(fmt.Sprintf("%s/underlay%d", m.Name, family), func(t *testing.T) {
				t.Parallel() // mostly waiting, each in namespaces of its own
				test(t, m.Name, family)
			})
		}
	}
}

// known is what the list of modes says.
func known(name string) mode.Mode {
	m, ok := mode.Find(mode.All(), name)
	if !ok {
		panic("no mode " + name)
	}
	return m
}

// kernelForwards says whether no packet passes through the daemon: no lanes, and forwarding outlives it.
func kernelForwards(name string) bool { return !known(name).Lanes() }

// pastKernel says whether a mode's outside port is on AF_XDP, which passes the kernel's sockets and filters by.
func pastKernel(name string) bool { return known(name).PastKernel() }

func TestReachability(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{Nodes: 3})
		a, b := c.Nodes[0], c.Nodes[1]
		for _, to := range b.PodAddrs {
			c.eventually("node a itself reaches a pod of b", func() error { return ping(a.NS, to) })
		}
		// An address of the overlay that no node owns is refused, not swallowed.
		out, err := a.Pod.Run("ping", "-n", "-c", "1", "-W", "3", "10.244.77.1")
		if err == nil || !strings.Contains(out, "nreachable") {
			t.Errorf("an unowned overlay address: %v\n%s", err, out)
		}
	})
}

// TestBulk sends a few megabytes over TCP each way, then traffic of all shapes at once, and compares every byte.
func TestBulk(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{})
		for _, fam := range []int{0, 1} {
			for _, dir := range [][2]int{{0, 1}, {1, 0}} {
				from, to := c.Nodes[dir[0]], c.Nodes[dir[1]]
				if err := bulk(from.Pod, to.Pod, to.PodAddrs[fam], 4<<20); err != nil {
					t.Errorf("%s → %s %v: %v", from.Name, to.Name, to.PodAddrs[fam], err)
				}
			}
		}
		c.verified(1e7, 2*time.Second)
	})
}

// bulk sends n patterned bytes over TCP between two namespaces and checks them on arrival.
func bulk(from, to *nettest.NS, addr netip.Addr, n int) error {
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()) })
	if err != nil {
		return err
	}
	defer l.Close()
	want := make([]byte, n)
	for i := range want {
		want[i] = byte(i*7 + i>>8*13)
	}
	sent := from.Go(func() error {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		_, err = conn.Write(want)
		return err
	})
	l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := l.Accept()
	if err != nil {
		return errors.Join(err, <-sent)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(conn)
	if err = errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("after %d bytes: %w", len(got), err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes arrived of %d, and they differ", len(got), len(want))
	}
	return nil
}

// TestMTUEdge: the largest packet passes, one byte more is answered with the right MTU.
func TestMTUEdge(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{PodMTU: 2000}) // so that it is for the node to answer
		a, b := c.Nodes[0], c.Nodes[1]
		s, err := c.status(a)
		if err != nil {
			t.Fatal(err)
		}
		for i, to := range b.PodAddrs {
			head := 28 // IPv4 + ICMP
			if i == 1 {
				head = 48
			}
			fits := strconv.Itoa(s.InnerMTU - head)
			c.eventually("a packet of the inner MTU passes", func() error { return ping(a.Pod, to, "-M", "do", "-s", fits) })
			out, err := a.Pod.Run("ping", "-n", "-c", "2", "-W", "1", "-M", "do", "-s", strconv.Itoa(s.InnerMTU-head+1), to.String())
			if err == nil || !strings.Contains(strings.ToLower(out), fmt.Sprintf("mtu=%d", s.InnerMTU)) &&
				!strings.Contains(strings.ToLower(out), fmt.Sprintf("mtu = %d", s.InnerMTU)) {
				t.Errorf("one byte above the inner MTU %d towards %v: %v\n%s", s.InnerMTU, to, err, out)
			}
		}
	})
}

// TestRestart: a daemon that stops, or is killed, and starts again serves the same traffic; and
// while it is away nothing of the overlay leaves the node in clear.
func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{})
		a, b := c.Nodes[0], c.Nodes[1]
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			for _, n := range []*nettest.ClusterNode{a, b} {
				clear := watchClear(t, b, a)
				c.stop(n, sig)
				ping(a.Pod, b.PodAddrs[0]) // its outcome depends on the mode; its path must not
				ping(a.Pod, b.PodAddrs[1])
				for _, p := range c.Network() {
					fam := "-4"
					if p.Addr().Is6() {
						fam = "-6"
					}
					if out, err := n.NS.Run("ip", fam, "route", "show", "table", "all", "type", "unreachable"); err != nil || !strings.Contains(out, p.String()) {
						t.Errorf("after %v no unreachable route for %v: %v\n%s", sig, p, err, out)
					}
				}
				c.start(n)
				c.ready(n)
				c.allReach()
				// Without a tunnel the overlay's packets are in clear on the underlay at any time.
				if leaked := clear(); len(leaked) > 0 && mode != "host-gw" {
					t.Errorf("%v of %s: overlay packets on the underlay in clear: %v", sig, n.Name, leaked)
				}
			}
		}
	})
}

// TestAnotherMode: a node that starts in another mode than before, after a stop or a crash, has its path, with nothing of the
// old one in its way, and nothing leaves in clear meanwhile.
func TestAnotherMode(t *testing.T) {
	t.Parallel()
	c := upMixed(t, "vxlan", map[string]string{}, 4, nettest.ClusterOptions{})
	a, b := c.Nodes[0], c.Nodes[1]
	for i, mode := range []string{"tun-gso", "vxlan", "xdp", "tun", "vxlan-nocsum", "tun-gso"} {
		clear := watchClear(t, b, a)
		c.stop(a, []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2])
		c.modes[a.Name] = mode
		c.start(a)
		c.ready(a)
		c.allReach()
		if leaked := clear(); len(leaked) > 0 {
			t.Errorf("to %s: overlay packets on the underlay in clear: %v", mode, leaked)
		}
		if s, err := c.status(a); err != nil || s.Mode != mode {
			t.Errorf("status: %+v: %v", s, err)
		}
	}
}

// TestKernelObjectsRepaired: what somebody else takes away or changes comes back, and with it the traffic.
func TestKernelObjectsRepaired(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{})
		a, b := c.Nodes[0], c.Nodes[1]
		s, err := c.status(a)
		if err != nil || len(s.Devices) == 0 && mode != "host-gw" {
			t.Fatalf("status: %+v: %v", s, err)
		}
		own := a.Prefixes[0].Addr().Next().String() // the node's own inner address
		for _, cmd := range damage(mode, a, s.Devices, own) {
			t.Run(cmd, func(t *testing.T) {
				a.NS.MustRun(t, "sh", "-ec", cmd)
				c.allReach()
				c.eventually("the node itself reaches a pod, from its own address", func() error { return ping(a.NS, b.PodAddrs[0], "-I", own) })
			})
		}
		c.eventually("the inner MTU is what it was", func() error {
			return ping(a.Pod, b.PodAddrs[0], "-M", "do", "-s", strconv.Itoa(s.InnerMTU-28))
		})
	})
}

// damage lists what to do to a node behind its daemon's back.
func damage(mode string, n *nettest.ClusterNode, devices []string, own string) []string {
	list := []string{
		"ip route flush proto 87",
		"ip -6 route flush proto 87",
		"ip route replace blackhole " + peerPrefix(n) + " proto static",
		// An underlay that comes back has lost its IPv6 addresses, which are not weft's to put back.
		fmt.Sprintf("ip link set %[1]s down; ip link set %[1]s up; ip addr replace %[2]s/64 dev %[1]s nodad", n.Iface, n.Underlay[1]),
	}
	for _, d := range devices {
		list = append(list,
			"ip addr flush dev "+d,
			"ip addr del "+own+"/32 dev "+d,
			"ip link set "+d+" mtu 1280",
			"ip link set "+d+" down",
			fmt.Sprintf("ip link set %[1]s down; ip link set %[1]s up", d),
			"ip neigh flush dev "+d+" nud all",
		)
		switch {
		case strings.HasPrefix(mode, "vxlan"):
			list = append(list,
				fmt.Sprintf("bridge fdb show dev %[1]s | while read mac rest; do bridge fdb del $mac dev %[1]s || true; done", d),
				"ip link set "+d+" address 02:00:00:00:00:99")
		case mode == "tap":
			list = append(list, "ip link set "+d+" address 02:00:00:00:00:99")
		}
		list = append(list, "ip link del "+d)
	}
	if mode == "host-gw" {
		list = append(list, "ip addr del "+own+"/32 dev lo")
	}
	return list
}

// peerPrefix is the IPv4 prefix of the other node of two.
func peerPrefix(n *nettest.ClusterNode) string {
	if n.Name == "node-a" {
		return "10.244.2.0/24"
	}
	return "10.244.1.0/24"
}

// TestNodeRemoved: a node taken out of nodes.yaml is unreachable at once and comes back.
func TestNodeRemoved(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{Nodes: 3})
		a, gone := c.Nodes[0], c.Nodes[2]
		c.absent[gone.Name] = true
		c.writeNodes()
		c.eventually("the removed node's pod is refused", func() error {
			out, err := a.Pod.Run("ping", "-n", "-c", "1", "-W", "3", gone.PodAddrs[0].String())
			if err == nil || !strings.Contains(out, "nreachable") {
				return fmt.Errorf("ping: %v\n%s", err, out)
			}
			return nil
		})
		c.allReach() // the others
		c.absent[gone.Name] = false
		c.writeNodes()
		c.allReach()

		// A broken file changes nothing and is said.
		c.writeFile(c.nodesFile(), "nodes: [{name: node-a, endpoint\n")
		c.eventually("the broken file is reported", func() error {
			var s struct {
				Problems []struct{ Text string } `json:"problems"`
			}
			if err := c.ask(a, &s, "status"); err != nil {
				return err
			}
			if len(s.Problems) == 0 {
				return errors.New("no problems in status")
			}
			return nil
		})
		c.allReach()
	})
}

// TestConservation counts a burst of UDP from pod to pod: what was generated was delivered or died
// under a name, and in every lane received = sent + drops.
func TestConservation(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{})
		a, b := c.Nodes[0], c.Nodes[1]
		const n = 5000
		got := flood(t, a.Pod, b.Pod, b.PodAddrs[0], n)
		for _, node := range []*nettest.ClusterNode{a, b} {
			lanes := c.lanes(node)
			if kernelForwards(mode) != (len(lanes) == 0) {
				t.Errorf("%s: %d lanes in mode %s", node.Name, len(lanes), mode)
			}
			for _, l := range lanes {
				account := fmt.Sprintf("%s %s: received %d, copied %d, sent %d, drops %v", node.Name, l.Name, l.Received, l.Copied, l.Sent, l.drops())
				if l.Received+l.Copied != l.Sent+l.dead() {
					t.Error(account)
				}
				t.Log(account)
			}
		}
		if got != n {
			t.Errorf("%d of %d paced packets arrived", got, n)
		}
	})
}

// flood sends n small UDP packets in bursts that wait for the receiver, so that none may be lost, and returns how
// many arrived.
func flood(t testing.TB, from, to *nettest.NS, addr netip.Addr, n int) int {
	t.Helper()
	var l *net.UDPConn
	var err error
	to.Do(func() { l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const burst = 32
	tokens := make(chan struct{}, 1)
	var got int
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			l.SetReadDeadline(time.Now().Add(patience))
			if _, err := l.Read(buf); err != nil {
				return
			}
			if got++; got%burst == 0 {
				select {
				case tokens <- struct{}{}:
				default:
				}
			}
			if got == n {
				return
			}
		}
	})
	if err := <-from.Go(func() error {
		conn, err := net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range n {
			if _, err := conn.Write(make([]byte, 36)); err != nil {
				return err
			}
			if (i+1)%burst == 0 {
				select {
				case <-tokens:
				case <-time.After(patience): // a lost packet: the count will say so
					return nil
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	return got
}
