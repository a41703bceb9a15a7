package nft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/hostnet"
	"weft/internal/nettest"
	"weft/policy"
	"weft/policy/policytest"
)

// road is three namespaces in a row. What near sends from whatever address goes through node to far, which has all the addresses that
// policytest gives out.
type road struct {
	t               *testing.T
	near, node, far *nettest.NS
	host            *hostnet.Host

	mu      sync.Mutex
	arrived map[uint32]bool // numbers of packets
}

var protocols = []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policytest.Other}

func newRoad(t *testing.T) *road {
	t.Helper()
	nettest.RequireRoot(t)
	r := &road{t: t, near: nettest.New(t), node: nettest.New(t), far: nettest.New(t), arrived: map[uint32]bool{}}
	nettest.Pair(t, nettest.End{NS: r.near, Dev: "eth0"}, nettest.End{NS: r.node, Dev: "near"}, 1500)
	nettest.Pair(t, nettest.End{NS: r.far, Dev: "eth0"}, nettest.End{NS: r.node, Dev: "far"}, 1500)
	sysctl := func(ns *nettest.NS, key, value string) {
		if err := ns.Sysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, ns := range []*nettest.NS{r.near, r.node, r.far} {
		sysctl(ns, "ipv4/conf/all/rp_filter", "0")
		sysctl(ns, "ipv4/conf/default/rp_filter", "0")
	}
	for _, dev := range []string{"near", "far"} {
		sysctl(r.node, "ipv4/conf/"+dev+"/rp_filter", "0")
	}
	sysctl(r.far, "ipv4/conf/eth0/rp_filter", "0")
	sysctl(r.far, "ipv4/conf/eth0/accept_local", "1") // the same address may be at both ends
	sysctl(r.node, "ipv4/ip_forward", "1")
	sysctl(r.node, "ipv6/conf/all/forwarding", "1")
	for _, c := range [][]string{
		{"addr", "add", "192.0.2.1/24", "dev", "near"}, {"addr", "add", "198.51.100.1/24", "dev", "far"},
		{"addr", "add", "2001:db8:1::1/64", "dev", "near", "nodad"}, {"addr", "add", "2001:db8:2::1/64", "dev", "far", "nodad"},
		{"route", "add", "10.0.0.0/24", "via", "198.51.100.2"}, {"route", "add", "fd00::/64", "via", "2001:db8:2::2"},
	} {
		r.node.MustRun(t, "ip", c...)
	}
	for _, c := range [][]string{
		{"addr", "add", "192.0.2.2/24", "dev", "eth0"}, {"addr", "add", "2001:db8:1::2/64", "dev", "eth0", "nodad"},
		{"route", "add", "default", "via", "192.0.2.1"}, {"route", "add", "default", "via", "2001:db8:1::1"},
	} {
		r.near.MustRun(t, "ip", c...)
	}
	for _, c := range [][]string{
		{"addr", "add", "198.51.100.2/24", "dev", "eth0"}, {"addr", "add", "2001:db8:2::2/64", "dev", "eth0", "nodad"},
		{"route", "add", "local", "10.0.0.0/24", "dev", "lo"}, {"route", "add", "local", "fd00::/64", "dev", "lo"}, {"link", "set", "lo", "up"},
	} {
		r.far.MustRun(t, "ip", c...)
	}
	var err error
	r.node.Do(func() { r.host, err = hostnet.New(zap.NewNop(), "policies") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.host.Close() })
	r.listen()
	// A packet that comes before its links and neighbours are there is lost, and none is sent twice that is counted.
	for i, q := range []policy.Traffic{{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}, {Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2")}} {
		q.Protocol, q.Port = policy.UDP, 9
		n := ^uint32(i)
		nettest.Eventually(t, nettest.Patience, func() error {
			r.send(q, n)
			r.mu.Lock()
			defer r.mu.Unlock()
			if !r.arrived[n] {
				return fmt.Errorf("%s does not arrive without policies", q)
			}
			return nil
		})
	}
	return r
}

// listen takes note of the numbers of what arrives.
func (r *road) listen() {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, p := range protocols {
			var fd int
			var err error
			r.far.Do(func() { fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(p)) })
			if err != nil {
				r.t.Fatal(err)
			}
			_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
			header := map[int]int{unix.AF_INET: 20, unix.AF_INET6: 0}[family]
			done, ended := make(chan struct{}), make(chan struct{})
			r.t.Cleanup(func() { close(done); <-ended; unix.Close(fd) })
			go func() {
				defer close(ended)
				b := make([]byte, 256)
				for {
					n, _, err := unix.Recvfrom(fd, b, 0)
					if err == nil && n >= header+8 {
						r.mu.Lock()
						r.arrived[binary.BigEndian.Uint32(b[header+4:])] = true
						r.mu.Unlock()
					}
					select {
					case <-done:
						return
					default:
					}
				}
			}()
		}
	}
}

// send sends a packet with a number, from whatever address.
func (r *road) send(q policy.Traffic, number uint32) {
	r.t.Helper()
	var err error
	r.near.Do(func() {
		var from, to unix.Sockaddr
		family, level, transparent := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
		if q.Src.Is4() {
			from, to = &unix.SockaddrInet4{Addr: q.Src.As4()}, &unix.SockaddrInet4{Addr: q.Dst.As4()}
		} else {
			family, level, transparent = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
			from, to = &unix.SockaddrInet6{Addr: q.Src.As16()}, &unix.SockaddrInet6{Addr: q.Dst.As16()}
		}
		var fd int
		if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(q.Protocol)); err != nil {
			return
		}
		defer unix.Close(fd)
		if err = unix.SetsockoptInt(fd, level, transparent, 1); err != nil {
			return
		}
		if err = unix.Bind(fd, from); err != nil {
			return
		}
		b := make([]byte, 20)
		binary.BigEndian.PutUint16(b, uint16(1024+number%60000))
		binary.BigEndian.PutUint16(b[2:], q.Port)
		binary.BigEndian.PutUint32(b[4:], number)
		err = unix.Sendto(fd, b, 0, to)
	})
	if err != nil {
		r.t.Fatalf("send %s: %v", q, err)
	}
}

// force puts a world's policies in force.
func (r *road) force(w *policy.World, o Options) (*policy.Program, Rules) {
	r.t.Helper()
	g := w.Compile(nil)
	o.Log = true
	rules := Table(g, o)
	if err := r.host.Apply("policies", hostnet.Want{Tables: []hostnet.Table{rules.Table}}); err != nil {
		r.t.Fatal(err)
	}
	return g, rules
}

// TestPackets: what the kernel lets pass is what the evaluator allows, in random worlds, over both families; and each packet is counted for the
// reason that the evaluator gives, and noted as it says.
func TestPackets(t *testing.T) {
	seeds := 20
	if os.Getenv("WEFT_TEST_LONG") != "" {
		seeds = 400
	}
	r := newRoad(t)
	number, denied, noted := uint32(0), 0, 0
	tracked := map[[2]netip.Addr]bool{}
	for seed := range uint64(seeds) {
		dice := policytest.New(seed)
		w := dice.World()
		_, rules := r.force(w, Options{})
		before, err := r.host.Counts(Family, Name)
		if err != nil {
			t.Fatal(err)
		}
		want := map[uint32]policy.Answer{}
		asked := map[uint32]policy.Traffic{}
		reasons, notes := map[policy.Reason]uint64{}, map[policy.Note]uint64{}
		for len(want) < 60 {
			q := dice.Traffic(w)
			// Nobody is routed to himself, and without ports the other way is an answer.
			if q.Src.Is4() != q.Dst.Is4() || q.Src == q.Dst || q.Protocol == policytest.Other && tracked[[2]netip.Addr{q.Dst, q.Src}] {
				continue
			}
			tracked[[2]netip.Addr{q.Src, q.Dst}] = q.Protocol == policytest.Other || tracked[[2]netip.Addr{q.Src, q.Dst}]
			number++
			a := w.Evaluate(q)
			want[number], asked[number] = a, q
			for _, o := range []policy.Opinion{a.Egress, a.Ingress} {
				if o.Reason.Tier != policy.NoTier {
					reasons[o.Reason]++
				}
				for _, n := range o.Notes {
					notes[n]++
					noted++
				}
				if o.Reason.Deny {
					denied++
					break
				}
			}
			r.send(q, number)
		}
		nettest.Eventually(t, nettest.Patience, func() error { // what is allowed arrives
			r.mu.Lock()
			defer r.mu.Unlock()
			for n, a := range want {
				if a.Allowed && !r.arrived[n] {
					return fmt.Errorf("seed %d: %s is allowed and does not arrive: %v; %v", seed, asked[n], a.Egress.Reason, a.Ingress.Reason)
				}
			}
			return nil
		})
		r.mu.Lock()
		for n, a := range want { // and what is not does not: the kernel had them all before it had the last
			if !a.Allowed && r.arrived[n] {
				t.Errorf("seed %d: %s is denied and arrives: %v; %v", seed, asked[n], a.Egress.Reason, a.Ingress.Reason)
			}
		}
		r.mu.Unlock()
		after, err := r.host.Counts(Family, Name)
		if err != nil {
			t.Fatal(err)
		}
		got, gotNotes := map[policy.Reason]uint64{}, map[policy.Note]uint64{}
		for _, names := range []map[string]policy.Reason{rules.Denied, rules.Allowed} {
			for name, reason := range names {
				if n := after[Name][name] - before[Name][name]; n > 0 {
					got[reason] += n
				}
			}
		}
		for name, note := range rules.Noted {
			if n := after[Name][name] - before[Name][name]; n > 0 {
				gotNotes[note] += n
			}
		}
		if !maps.Equal(got, reasons) {
			t.Errorf("seed %d: packets were counted as %v, want %v", seed, got, reasons)
		}
		if !maps.Equal(gotNotes, notes) {
			t.Errorf("seed %d: packets were noted as %v, want %v", seed, gotNotes, notes)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d packets, %d of them denied, %d notes", number, denied, noted)
	if denied < 8*seeds || noted < 3*seeds {
		t.Errorf("only %d of %d packets were to be denied, and %d noted", denied, number, noted)
	}
}

// TestStays: what is in force already is not touched, and an unknown pod's packets die under that name.
func TestStays(t *testing.T) {
	r := newRoad(t)
	w := policytest.New(7).World()
	known := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}
	o := Options{Prefixes: nettest.Prefixes("10.0.0.0/28", "fd00::/124"), Known: known}
	empty, err := policy.NewWorld(nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.force(empty, o)
	for i, c := range []struct {
		src, dst string
		passes   bool
	}{
		{"10.0.0.1", "10.0.0.20", true}, {"10.0.0.2", "10.0.0.20", false}, {"10.0.0.20", "10.0.0.1", true}, {"10.0.0.20", "10.0.0.2", false},
		{"fd00::1", "fd00::20", true}, {"fd00::2", "fd00::20", false}, {"fd00::20", "fd00::1", true}, {"fd00::20", "fd00::2", false}, {"10.0.0.30", "10.0.0.31", true},
	} {
		before, _ := r.host.Counts(Family, Name)
		n := uint32(i + 1)
		nettest.Eventually(t, nettest.Patience, func() error {
			// Again each time: a first packet may be lost to a link that has just come up.
			r.send(policy.Traffic{Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr(c.dst), Protocol: policy.UDP, Port: 9}, n)
			after, err := r.host.Counts(Family, Name)
			r.mu.Lock()
			defer r.mu.Unlock()
			if dropped := after[Name][Unknown] - before[Name][Unknown]; err != nil || r.arrived[n] != c.passes || (dropped > 0) == c.passes {
				return fmt.Errorf("%s → %s: arrived %v, %d dropped as unknown, %v", c.src, c.dst, r.arrived[n], dropped, err)
			}
			return nil
		})
	}
	// The same once more is no change: the counters would end with the table, and the kernel's sets are read as they were written.
	r.force(w, o)
	text := r.node.MustRun(t, "nft", "list", "ruleset")
	r.force(policytest.New(7).World(), o)
	if again := r.node.MustRun(t, "nft", "list", "ruleset"); again != text || r.host.Repairs() != 0 {
		t.Errorf("the same policies were put in force once more, %d repairs:\n%s\n%s", r.host.Repairs(), text, again)
	}
}

// TestMany: many pods and policies are put in force in one transaction, whatever netlink's messages hold, and so is a change among them.
func TestMany(t *testing.T) {
	r := newRoad(t)
	const pods, local, each = 5000, 50, 200
	world := func(labels string) *policy.World {
		var all []policy.Pod
		for i := range pods {
			p := policy.Pod{Namespace: fmt.Sprint("n", i%each), Name: fmt.Sprint("p", i), Labels: map[string]string{"app": fmt.Sprint(i % 7)},
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 1, 14: byte(i >> 8), 15: byte(i)})}}
			if i == pods-1 {
				p.Labels["app"] = labels
			}
			all = append(all, p)
		}
		var policies []policy.Policy
		for i := range each {
			p := policy.Policy{Namespace: fmt.Sprint("n", i), Name: "p", Tier: policy.Namespaced, Subject: policy.Peer{Namespace: fmt.Sprint("n", i)}, Isolates: [2]bool{true, true}}
			for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
				for k := range 10 {
					p.Rules[d] = append(p.Rules[d], policy.Rule{Peers: []policy.Peer{{Namespaces: &policy.Selector{}, Pods: &policy.Selector{Labels: map[string]string{"app": fmt.Sprint(k)}}}},
						Ports: []policy.Port{{Protocol: policy.TCP, First: uint16(1000 + 10*k), Last: uint16(1000 + 10*k + i%5)}}})
				}
			}
			policies = append(policies, p)
		}
		w, err := policy.NewWorld(nil, all, nil, policies)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, labels := range []string{"0", "3", "none"} {
		w := world(labels)
		n := 0
		began := time.Now()
		g := w.Compile(func(*policy.Pod) bool { n++; return n%(pods/local) == 0 })
		rules := Table(g, Options{})
		compiled := time.Since(began)
		if err := r.host.Apply("policies", hostnet.Want{Tables: []hostnet.Table{rules.Table}}); err != nil {
			t.Fatal(err)
		}
		elements := 0
		for _, s := range rules.Table.Sets {
			elements += len(s.Elements)
		}
		t.Logf("%d pods, %d of them here, %d policies: %d chains, %d elements; compiled in %v, in force after %v more", pods, local, each, len(rules.Table.Chains), elements,
			compiled, time.Since(began)-compiled)
		if elements < 10_000 {
			t.Errorf("%d elements are not many", elements)
		}
	}
}
