package policies

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/internal/nettest"
	"weft/policy"
)

// stream is one direction of a UDP flow: numbered packets from one end to the other, without a pause.
type stream struct {
	name     string
	from, to *net.UDPConn
	dst      netip.AddrPort

	mu   sync.Mutex // held while a packet is numbered and sent
	next uint32

	seen    sync.Mutex
	arrived map[uint32]bool
}

// flow is two streams: what its client sends is judged, and the answers belong to it.
type flow struct {
	question policy.Traffic
	streams  [2]*stream
	allowed  bool
	begin    [2]uint32 // of what was sent since the last change was reported
}

func (s *stream) send() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.from.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, s.next), s.dst)
	if err != nil {
		return err
	}
	s.next++
	return nil
}

// sent is how many were handed to the kernel.
func (s *stream) sent() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// missing returns the first of [from, to) that has not arrived, and came the first that has.
func (s *stream) missing(from, to uint32) (missing, came int64) {
	s.seen.Lock()
	defer s.seen.Unlock()
	missing, came = -1, -1
	for n := to; n > from; n-- {
		if s.arrived[n-1] {
			came = int64(n - 1)
		} else {
			missing = int64(n - 1)
		}
	}
	return missing, came
}

func (b *bench) udp(ns *nettest.NS, addr netip.AddrPort) *net.UDPConn {
	b.t.Helper()
	var c *net.UDPConn
	var err error
	ns.Do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)) })
	if err != nil {
		b.t.Fatal(err)
	}
	_ = c.SetReadBuffer(8 << 20)
	b.t.Cleanup(func() { c.Close() })
	return c
}

// flow makes one from a pod to a port of the other, and starts to receive at both ends.
func (b *bench) flow(from, family, port int) *flow {
	addr := func(pod, port int) netip.AddrPort {
		return netip.AddrPortFrom(b.c.Nodes[pod].PodAddrs[family], uint16(port))
	}
	client, server := addr(from, 40000+port), addr(1-from, port)
	near, far := b.udp(b.c.Nodes[from].Pod, client), b.udp(b.c.Nodes[1-from].Pod, server)
	f := &flow{question: policy.Traffic{Src: client.Addr(), Dst: server.Addr(), Protocol: policy.UDP, Port: server.Port()}, allowed: true}
	f.streams = [2]*stream{{name: fmt.Sprintf("%v → %v", client, server), from: near, to: far, dst: server, arrived: map[uint32]bool{}},
		{name: fmt.Sprintf("answers %v → %v", server, client), from: far, to: near, dst: client, arrived: map[uint32]bool{}}}
	for _, s := range f.streams {
		go func() {
			buf := make([]byte, 64)
			for {
				n, err := s.to.Read(buf)
				if err != nil {
					return
				}
				if n == 4 {
					s.seen.Lock()
					s.arrived[binary.BigEndian.Uint32(buf)] = true
					s.seen.Unlock()
				}
			}
		}()
	}
	return f
}

// randomPolicies allows and denies the flows' ports at random, by policies of all kinds.
func randomPolicies(r *rand.Rand, ports []int) string {
	pick := func() (list []string) {
		for _, p := range ports {
			if r.IntN(2) == 0 {
				list = append(list, fmt.Sprint(p))
			}
		}
		return list
	}
	join := func(form string) string {
		var all []string
		for _, p := range pick() {
			all = append(all, fmt.Sprintf(form, p))
		}
		return strings.Join(all, "")
	}
	const cluster = ", {udp: {destinationPort: {number: %s}}}"
	text := ""
	if r.IntN(2) == 0 {
		text += np("in", "x", "{podSelector: {matchLabels: {name: p1}}, ingress: [{ports: [{port: 9}"+join(", {protocol: UDP, port: %s}")+"]}]}")
	}
	if r.IntN(2) == 0 {
		text += np("out", "x", "{podSelector: {matchLabels: {name: p1}}, policyTypes: [Egress], egress: [{ports: [{port: 9}"+join(", {protocol: UDP, port: %s}")+"]}]}")
	}
	for i, d := range []string{"ingress", "egress"} {
		peers := []string{"from", "to"}[i]
		if list := join(cluster); list != "" && r.IntN(3) == 0 {
			text += "  - {apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: c" + d + "}, spec: {tier: " + []string{"Admin", "Baseline"}[r.IntN(2)] +
				", priority: 1, subject: {namespaces: {}}, " + d + ": [{action: " + []string{"Deny", "Accept", "Pass"}[r.IntN(3)] + ", " + peers + ": [{namespaces: {}}], protocols: [" + list[2:] + "]}]}}\n"
		}
		if list := join(cluster); list != "" && r.IntN(3) == 0 {
			text += own("o"+d, "{tier: first, priority: 1, staged: "+[]string{"true", "false"}[r.IntN(2)]+", subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {name: p1}}}}, "+d+
				": [{action: "+[]string{"Deny", "Accept", "Log"}[r.IntN(3)]+", protocols: ["+list[2:]+"]}]}")
		}
	}
	return text
}

// TestManyChanges: packets of many flows, in both directions, while policies change: none is delivered that was sent after a change was reported
// that denies it, until another allows it, and none is lost that is allowed, by what was in force before a change and after it.
func TestManyChanges(t *testing.T) {
	t.Parallel()
	changes := 40
	if os.Getenv("WEFT_TEST_LONG") != "" {
		changes = 1000
	}
	b := prepare(t)
	source := make(saying, 1)
	b.from = source
	said := uint64(0)
	say := func(policies string) { // as soon as it can be: the pause after a change is for others
		t.Helper()
		c, _, err := policy.ParseCluster("changes", []byte(b.text(policies)))
		if err != nil {
			t.Fatal(err)
		}
		said++
		c.Revision = said
		source <- c
	}
	say("")
	b.start()
	t.Cleanup(func() { b.stop() })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var flows []*flow
	var ports []int
	for i := range 8 {
		for from := range 2 {
			flows = append(flows, b.flow(from, i%2, 1000+i))
		}
		ports = append(ports, 1000+i)
	}
	stop := make(chan struct{})
	var senders sync.WaitGroup
	defer func() { close(stop); senders.Wait() }()
	for _, f := range flows { // each begins by its client
		nettest.Eventually(t, patience, func() error {
			if err := f.streams[0].send(); err != nil {
				return err
			}
			if _, came := f.streams[0].missing(0, f.streams[0].sent()); came < 0 {
				return fmt.Errorf("%s does not begin", f.streams[0].name)
			}
			return nil
		})
	}
	for _, f := range flows {
		for _, s := range f.streams {
			senders.Go(func() {
				pause := time.NewTicker(2 * time.Millisecond)
				defer pause.Stop()
				for {
					select {
					case <-stop:
						return
					case <-pause.C:
						_ = s.send() // an ICMP error about what was denied
					}
				}
			})
		}
	}
	each := func(do func(f *flow, i int, s *stream)) {
		for _, f := range flows {
			for i, s := range f.streams {
				do(f, i, s)
			}
		}
	}
	each(func(f *flow, i int, s *stream) { f.begin[i] = s.sent() })
	// settled waits until what is allowed has arrived of all that was sent since the last report, a few packets at least of each stream.
	settled := func() {
		each(func(f *flow, i int, s *stream) {
			var end uint32
			nettest.Eventually(t, patience, func() error {
				if end = s.sent(); end < f.begin[i]+3 {
					return fmt.Errorf("%s stopped at %d", s.name, end)
				}
				return nil
			})
			if f.allowed {
				nettest.Eventually(t, patience, func() error {
					if lost, _ := s.missing(f.begin[i], end); lost >= 0 {
						return fmt.Errorf("%s: packet %d is allowed and does not arrive; sent since the change was reported: %d to %d", s.name, lost, f.begin[i], end)
					}
					return nil
				})
				f.begin[i] = end
			} else if _, came := s.missing(f.begin[i], end); came >= 0 {
				t.Errorf("%s: packet %d was sent after it was reported as denied, and arrives; sent since then: %d to %d", s.name, came, f.begin[i], end)
			}
		})
	}
	denied, delivered := 0, 0
	// What was sent while a change came into force by which it was allowed before and after.
	type window struct {
		of       *stream
		from, to uint32
	}
	var meanwhile []window
	for change := range changes {
		settled()
		if t.Failed() {
			return
		}
		text := randomPolicies(r, ports)
		name := fmt.Sprint("change-", change)
		say(np(name, "none", "{podSelector: {}}") + text)
		nettest.Eventually(t, patience, func() error {
			if s := b.m.Status(); s.Problem != "" || !slices.ContainsFunc(s.World.Policies(), func(p *policy.Policy) bool { return p.Name == name }) {
				poke(b.m.urgent)
				return fmt.Errorf("%s is not in force: %q", name, s.Problem)
			}
			return nil
		})
		world := b.m.Status().World
		for _, f := range flows {
			was, a := f.allowed, world.Evaluate(f.question)
			if allowed, err := b.m.Allowed(f.question); allowed != a.Allowed || err != nil {
				t.Errorf("%s: allowed %v, %v; the rules say %v", f.question, allowed, err, a.Allowed)
			}
			f.allowed = !a.Egress.Reason.Deny
			if a.Ingress.Pod == "x/p1" { // policies are in force on its node alone
				f.allowed = !a.Ingress.Reason.Deny
			}
			if f.allowed {
				delivered++
			} else {
				denied++
			}
			if !was && !f.allowed {
				continue // what was sent meanwhile counts, too
			}
			for i, s := range f.streams {
				now := s.sent()
				if was && f.allowed {
					meanwhile = append(meanwhile, window{s, f.begin[i], now})
				}
				f.begin[i] = now
			}
		}
	}
	settled()
	lost := 0
	for _, w := range meanwhile {
		for n := w.from; n < w.to; n++ {
			if missing, _ := w.of.missing(n, n+1); missing >= 0 {
				lost++
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d packets were lost during %d changes that were allowed before and after", lost, changes)
	}
	t.Logf("%d changes, %d flows: %d times one was denied, %d times allowed", changes, len(flows), denied, delivered)
	if denied < changes || delivered < changes {
		t.Error("the changes say nothing")
	}
}
