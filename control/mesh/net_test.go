package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"weft/control"
)

// simNet is a network in memory: addresses, and who can reach whom. Its time is the one of the test's bubble.
type simNet struct {
	mu    sync.Mutex
	hosts map[string]*simHost            // by address with port
	cut   func(from, to netip.Addr) bool // nil = all reach all
	tap   func(packet []byte, to string) // sees each packet; nil = nobody
	bytes int
}

func newSimNet() *simNet { return &simNet{hosts: map[string]*simHost{}} }

// part cuts the network into parts; hosts that are in none reach nobody.
func (n *simNet) part(parts ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = func(a, b netip.Addr) bool {
		return !slices.ContainsFunc(parts, func(p []netip.Addr) bool { return slices.Contains(p, a) && slices.Contains(p, b) })
	}
}

func (n *simNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = nil
}

func (n *simNet) count(size int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes += size
}

// sent is how many bytes were sent so far, of packets and streams.
func (n *simNet) sent() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bytes
}

// reach returns the host at an address that from can reach.
func (n *simNet) reach(from *simHost, to string, size int) *simHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes += size
	h := n.hosts[to]
	if h == nil || n.cut != nil && n.cut(from.at.Addr(), h.at.Addr()) {
		return nil
	}
	return h
}

type simHost struct {
	net     *simNet
	at      netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    chan struct{}
}

func (n *simNet) listen(at netip.AddrPort) *simHost {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &simHost{net: n, at: at, packets: make(chan *memberlist.Packet, 4096), streams: make(chan net.Conn, 64), down: make(chan struct{})}
	n.hosts[at.String()] = h
	return h
}

var errNoHost = errors.New("no route to host")

func (h *simHost) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return nil, 0, errNoHost }
func (h *simHost) PacketCh() <-chan *memberlist.Packet                 { return h.packets }
func (h *simHost) StreamCh() <-chan net.Conn                           { return h.streams }

func (h *simHost) WriteTo(b []byte, to string) (time.Time, error) {
	if tap := h.net.tap; tap != nil {
		tap(b, to)
	}
	if other := h.net.reach(h, to, len(b)); other != nil {
		select {
		case other.packets <- &memberlist.Packet{Buf: slices.Clone(b), From: net.UDPAddrFromAddrPort(h.at), Timestamp: time.Now()}:
		default: // a socket's buffer that is full
		}
	}
	return time.Now(), nil
}

func (h *simHost) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return h.WriteTo(b, a.Addr)
}

func (h *simHost) DialTimeout(to string, _ time.Duration) (net.Conn, error) {
	other := h.net.reach(h, to, 0)
	if other == nil {
		return nil, errNoHost
	}
	near, far := net.Pipe()
	select {
	case other.streams <- simConn{far, h.at, h.net}:
	default:
		return nil, errNoHost
	}
	return simConn{near, other.at, h.net}, nil
}

func (h *simHost) DialAddressTimeout(a memberlist.Address, d time.Duration) (net.Conn, error) {
	return h.DialTimeout(a.Addr, d)
}

func (h *simHost) Shutdown() error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.net.hosts[h.at.String()] == h {
		delete(h.net.hosts, h.at.String())
	}
	return nil
}

type simConn struct {
	net.Conn
	from netip.AddrPort
	net  *simNet
}

func (c simConn) Write(b []byte) (int, error) {
	c.net.count(len(b))
	return c.Conn.Write(b)
}

func (c simConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

var simNetwork = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// simNode is one daemon's source, started and stopped by a test.
type simNode struct {
	*Source
	t      testing.TB
	net    *simNet
	set    Settings
	name   string
	addr   netip.Addr
	cancel context.CancelFunc
	done   chan error

	lastOnly bool // of what is published

	mu     sync.Mutex
	states []control.State // published, the newest last
}

func password(text byte) func() ([]Secret, error) {
	return func() ([]Secret, error) { return []Secret{{text}}, nil }
}

// newNode makes a node at 198.18.0.i that begins at others.
func (n *simNet) newNode(t testing.TB, name string, i int, join ...string) *simNode {
	node := &simNode{t: t, net: n, name: name, addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}
	node.set = Settings{Join: join, Port: DefaultPort, Forget: 24 * time.Hour, Secrets: password(1), Network: simNetwork, VNI: 1, StateDir: t.TempDir(), Log: zap.NewNop()}
	return node
}

func (n *simNode) start() *simNode {
	at := netip.AddrPortFrom(n.addr, DefaultPort)
	n.set.listen = func() (memberlist.NodeAwareTransport, netip.AddrPort, error) { return n.net.listen(at), at, nil }
	n.Source = New(n.set)
	n.Source.Announce(control.Node{Name: n.name, Endpoints: []netip.Addr{n.addr}})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	n.t.Cleanup(n.stop)
	go func() {
		n.done <- n.Source.Run(ctx, func(s control.State) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.lastOnly {
				n.states = n.states[:0]
			}
			n.states = append(n.states, s)
		})
	}()
	return n
}

func (n *simNode) stop() {
	if n.cancel == nil { // stopped already
		return
	}
	n.cancel()
	n.cancel = nil
	if err := <-n.done; err != nil {
		n.t.Errorf("%s: Run returned %v", n.name, err)
	}
}

// state is the newest; the zero State where there is none.
func (n *simNode) state() control.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.states) == 0 {
		return control.State{}
	}
	return n.states[len(n.states)-1]
}

// until waits for a condition, in the time of the bubble.
func until(t testing.TB, most time.Duration, what string, cond func() bool, show func() string) time.Duration {
	t.Helper()
	begin := time.Now()
	for !cond() {
		if time.Since(begin) > most {
			t.Fatalf("not within %v: %s; %s", most, what, show())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

func show(nodes []*simNode) func() string {
	return func() (text string) {
		for _, n := range nodes {
			s := n.state()
			text += fmt.Sprintf("\n%s %v, others", n.name, s.Self.Prefixes)
			for _, o := range s.Nodes[:min(len(s.Nodes), 12)] {
				text += fmt.Sprintf(" %s %v", o.Name, o.Prefixes)
			}
			text += fmt.Sprintf(", problems %v", s.Problems)
		}
		return text
	}
}

// agree says that all have prefixes of their own, and that each has the same of all.
func agree(nodes []*simNode) bool {
	for _, n := range nodes {
		s := n.state()
		if len(s.Self.Prefixes) != 2 || len(s.Nodes) != len(nodes)-1 {
			return false
		}
		for _, o := range nodes {
			if o == n {
				continue
			}
			at, ok := control.Find(s.Nodes, o.name)
			if !ok || !s.Nodes[at].Equal(asSeen(o.state().Self)) {
				return false
			}
		}
	}
	return true
}

// asSeen is a node as others have it: with the MAC that its name gives, and its prefixes in order.
func asSeen(n control.Node) control.Node {
	n.MAC = n.VTEP()
	n.Prefixes = slices.Clone(n.Prefixes)
	slices.SortFunc(n.Prefixes, netip.Prefix.Compare)
	return n
}

func problem(s control.State, node, text string) bool {
	return slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return p.Node == node && contains(p.Text, text) })
}
