package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Test mixed sends traffic of many shapes at once, both ways and over both families, at a bounded rate, and verifies all of it: what
// carries packets learns from those that pass, and must not hold one for another that came before it.
//
// Each shape speaks in spells of random length and is silent between them, so that in time every one is alone, follows each of the others and
// is beside them (spells).

// shape is a kind of traffic.
type shape struct {
	name  string
	share float64 // of the rate
	unit  string  // what is counted
	mss   int     // of bulk: TCP_MAXSEG, 0 = the path's
}

const (
	datagrams = "datagram"
	messages  = "message"
	octets    = "byte"
)

// The shapes, UDP first. A path has one UDP socket at each end, and a TCP connection for every shape of TCP.
const (
	shapeBursts = iota
	shapeSmall
	shapeFragments
	shapeUDPRoundTrips
	shapeTCPRoundTrips // from here on TCP
	shapeBulk          // and those behind it
)

var shapes = []shape{
	{"udp-segment", .25, datagrams, 0}, // super-packets of random sizes, as QUIC sends them
	{"small", .05, datagrams, 0},
	{"fragments", .10, datagrams, 0}, // larger than the path's MTU
	{"udp-rr", .05, datagrams, 0},
	{"tcp-rr", .15, messages, 0},
	{"bulk", .10, octets, 0},
	{"bulk-mss-1200", .10, octets, 1200},
	{"bulk-mss-700", .10, octets, 700},
	{"bulk-mss-200", .10, octets, 200},
}

// unknownShape is where damaged datagrams are counted whose header does not say what they were.
const unknownShape = "unknown"

// tcpFlows is how many TCP connections a path has.
var tcpFlows = len(shapes) - shapeTCPRoundTrips

// Shape is what one kind of traffic of test mixed came to over one family, both directions together.
type Shape struct {
	Name     string `json:"name"`
	Family   int    `json:"family"`
	Unit     string `json:"unit"` // of Sent, Received and Lost: datagram, message (of a round trip), byte
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"` // as sent, without duplicates
	Lost     uint64 `json:"lost"`     // neither received nor corrupt
	Integrity
}

// AddShapes adds up accounts of the same shapes. What was lost is known once all ends are in it.
func AddShapes(sum, more []Shape) []Shape {
	for _, m := range more {
		i := slices.IndexFunc(sum, func(s Shape) bool { return s.Name == m.Name && s.Family == m.Family })
		if i < 0 {
			sum = append(sum, m)
			continue
		}
		s := &sum[i]
		s.Sent += m.Sent
		s.Received += m.Received
		s.Lost += m.Lost
		s.Add(m.Integrity)
	}
	return sum
}

// mixedPath is one family's part of a mixed session, as ends tell each other.
type mixedPath struct {
	Address netip.Addr `json:"address"` // the server's
	TCP     uint16     `json:"tcp"`
	UDP     uint16     `json:"udp"`
	Payload int        `json:"payload,omitempty"` // of the largest datagram that is not fragmented, bytes; the client finds it
}

// mixed is one end of the session.
type mixed struct {
	p        *pattern
	sends    direction
	rate     float64 // bytes a second that this end offers
	duration time.Duration
	paths    []*mixPath

	quit      chan struct{} // closed to end early
	once      sync.Once
	receivers []func() // wait for them
	tasks

	conns []*net.TCPConn // of all paths; with mu
}

// tasks are goroutines that may fail.
type tasks struct {
	sync.WaitGroup
	mu  sync.Mutex
	err error
}

// mixPath is one end of a family's part.
type mixPath struct {
	*mixed
	mixedPath
	index    int
	udp      udpEnd
	tcp      []*net.TCPConn // shapeTCPRoundTrips and on
	accounts []*account     // by shape
	unknown  Integrity      // datagrams that are damaged where their shape would be
	replies  chan uint64    // of UDP round trips
	over     atomic.Bool    // nothing more is received by UDP
	arrived  atomic.Int64   // when a datagram last was, ns since 1970
}

// account is what one end knows of a shape. The receiver's part is read when it has ended.
type account struct {
	sent     atomic.Uint64
	received atomic.Uint64
	win      window
	flowCheck
}

// patienceMixed is how long after the end TCP may take to bring what is under way.
const patienceMixed = 15 * time.Second

func newMixed(token uint64, sends direction, rate float64, duration time.Duration) *mixed {
	return &mixed{p: newPattern(token), sends: sends, rate: rate, duration: duration, quit: make(chan struct{})}
}

// receives is the direction of what this end receives.
func (m *mixed) receives() direction { return 1 - m.sends }

func (m *mixed) addPath(path mixedPath, udp socket) *mixPath {
	p := &mixPath{mixed: m, mixedPath: path, index: len(m.paths), udp: udpEnd{socket: udp, df: true}, replies: make(chan uint64, 1)}
	for k := range shapes {
		p.accounts = append(p.accounts, &account{flowCheck: flowCheck{p: m.p, dir: m.receives(), flow: p.number(k)}})
	}
	m.paths = append(m.paths, p)
	return p
}

// number tells the shapes of all paths apart: it is a TCP connection's flow, and the trial of datagrams.
func (p *mixPath) number(shape int) int { return p.index*len(shapes) + shape }

func (p *mixPath) family() int {
	if p.Address.Is4() {
		return 4
	}
	return 6
}

func (p *mixPath) String() string { return fmt.Sprintf("over IPv%d", p.family()) }

// run sends and receives everything until the duration is over and TCP has brought all that was sent. UDP is received until rest.
func (m *mixed) run() error {
	begin := time.Now()
	for _, p := range m.paths {
		for _, c := range p.tcp {
			_ = c.SetDeadline(begin.Add(m.duration + patienceMixed))
		}
		for _, s := range []struct {
			shape int
			send  func(*spells, *account) error
		}{
			{shapeBursts, p.sendBursts}, {shapeSmall, p.sendSmall}, {shapeFragments, p.sendFragments}, {shapeUDPRoundTrips, p.askUDP},
		} {
			if s.shape == shapeUDPRoundTrips && m.sends == toClient {
				continue // the server answers where it receives
			}
			m.task(p, s.shape, func() error { return s.send(m.spells(p, s.shape, begin), p.accounts[s.shape]) })
		}
		for i, c := range p.tcp {
			k := shapeTCPRoundTrips + i
			switch {
			case k > shapeTCPRoundTrips:
				m.task(p, k, func() error { return p.fill(c, k, m.spells(p, k, begin)) })
				m.task(p, k, func() error { return p.drain(c, k) })
			case m.sends == toServer:
				m.task(p, k, func() error { return p.askTCP(c, k, m.spells(p, k, begin)) })
			default:
				m.task(p, k, func() error { return p.answerTCP(c, k) })
			}
		}
	}
	m.Wait()
	return m.err
}

// task runs a part; the first that fails ends all.
func (m *mixed) task(p *mixPath, shape int, f func() error) {
	m.Go(func() {
		err := f()
		if err == nil {
			return
		}
		m.mu.Lock()
		if m.err == nil {
			m.err = fmt.Errorf("%s %s: %w", shapes[shape].name, p, err)
		}
		m.mu.Unlock()
		m.abort()
	})
}

// abort makes everything return soon.
func (m *mixed) abort() {
	m.once.Do(func() { close(m.quit) })
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		c.Close()
	}
}

// connected is what a path has of TCP.
func (m *mixed) connected(p *mixPath, conns ...*net.TCPConn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.tcp = append(p.tcp, conns...)
	m.conns = append(m.conns, conns...)
}

// rest receives by UDP until as many datagrams came as the other end sent, or none does any more, and ends the receivers. sent is
// that number, 0 = not known.
func (m *mixed) rest(sent uint64) {
	const quiet, most = 200 * time.Millisecond, 2 * time.Second
	for begin := time.Now(); time.Since(begin) < most; time.Sleep(5 * time.Millisecond) {
		last, came, queued := begin.UnixNano(), uint64(0), false
		for _, p := range m.paths {
			last = max(last, p.arrived.Load())
			for k := range shapeTCPRoundTrips {
				came += p.accounts[k].received.Load()
			}
			queued = queued || p.udp.queued()
		}
		if sent > 0 && came >= sent || !queued && time.Since(time.Unix(0, last)) > quiet {
			break
		}
	}
	m.silence()
}

// silence ends the receivers.
func (m *mixed) silence() {
	for _, p := range m.paths {
		p.over.Store(true)
	}
	for _, wait := range m.receivers {
		wait()
	}
}

// shapes is this end's account, when everything has ended.
func (m *mixed) shapes() []Shape {
	var list []Shape
	for _, p := range m.paths {
		for k, a := range p.accounts {
			for i, d := range a.Damage {
				a.Damage[i] = shapes[k].name + " " + p.String() + " " + d
			}
			list = append(list, Shape{Name: shapes[k].name, Family: p.family(), Unit: shapes[k].unit,
				Sent: a.sent.Load(), Received: a.received.Load(), Integrity: a.Integrity})
		}
		if p.unknown.Corrupt > 0 {
			list = append(list, Shape{Name: unknownShape, Family: p.family(), Unit: datagrams, Integrity: p.unknown})
		}
	}
	return list
}

func (m *mixed) close() {
	m.abort()
	m.silence()
	for _, p := range m.paths {
		p.udp.close()
	}
}

// runMixed is the client's end.
func runMixed(ctx context.Context, s Spec, r *Result) error {
	c, ready, err := connect(ctx, s, job{Role: roleMixed, Flows: tcpFlows, Congestion: s.Congestion, Rate: s.Params["rate"], Family: s.param(family.Name)})
	if err != nil {
		return err
	}
	defer c.close()
	m := newMixed(ready.Token, toServer, s.Params["rate"]/8, s.Duration)
	defer m.close()
	defer context.AfterFunc(ctx, m.abort)()
	for _, path := range ready.Paths {
		if err := m.dial(ctx, c, s, path); err != nil {
			return c.blame(err)
		}
	}
	start := message{Type: msgStart}
	for _, p := range m.paths {
		m.receivers = append(m.receivers, background(p.receive))
		start.Paths = append(start.Paths, p.mixedPath)
	}
	if _, err := c.ask(start, msgReady, 2*controlTimeout); err != nil {
		return err
	}
	r.Congestion = s.Congestion
	begin := time.Now()
	go func() {
		select {
		case <-c.dead:
			m.abort()
		case <-m.quit:
		}
	}()
	if err = c.blame(m.run()); err != nil {
		return err
	}
	r.Seconds = time.Since(begin).Seconds()
	all, err := c.finish()
	if err != nil {
		return err
	}
	var sent uint64
	for _, f := range all.Shapes {
		if f.Unit == datagrams {
			sent += f.Sent
		}
	}
	m.rest(sent)
	r.tally(AddShapes(m.shapes(), all.Shapes), m)
	r.Bytes = all.Bytes
	return nil
}

// tally makes the figures of what both ends counted.
func (r *Result) tally(both []Shape, m *mixed) {
	unknown := map[int]uint64{} // by family: some of those that are missing came, with a damaged header
	for _, f := range both {
		if f.Name == unknownShape {
			unknown[f.Family] = f.CorruptPackets
		}
	}
	var sent, lost uint64
	for i := range both {
		f := &both[i]
		if f.Sent > f.Received+f.CorruptPackets {
			f.Lost = f.Sent - f.Received - f.CorruptPackets
		}
		if f.Unit == datagrams {
			came := min(f.Lost, unknown[f.Family])
			unknown[f.Family] -= came
			f.Lost -= came
			sent, lost = sent+f.Sent, lost+f.Lost
		}
		r.Add(f.Integrity)
	}
	for _, p := range m.paths {
		r.Payload = max(r.Payload, p.Payload)
		for name, n := range p.udp.refused() {
			if r.SendErrors == nil {
				r.SendErrors = map[string]uint64{}
			}
			r.SendErrors[name] += n
		}
	}
	r.Shapes = both
	r.Damage = r.Damage[:min(len(r.Damage), 2*maxDamage)]
	r.report(map[string]float64{"throughput": float64(r.Verified) * 8 / r.Seconds, "loss": float64(lost) / float64(max(sent, 1))})
}

// dial connects a path's sockets.
func (m *mixed) dial(ctx context.Context, c *client, s Spec, path mixedPath) error {
	udp, err := dialUDP(ctx, s, netip.AddrPortFrom(path.Address, path.UDP))
	if err != nil {
		return fmt.Errorf("data socket: %w", err)
	}
	p := m.addPath(path, udp)
	if err := p.reach(c); err != nil {
		return err
	}
	for k := shapeTCPRoundTrips; k < len(shapes); k++ {
		d := net.Dialer{Control: withMSS(tcpOptions(s.Congestion), shapes[k].mss), KeepAlive: -1, Timeout: controlTimeout}
		conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(path.Address, path.TCP).String())
		if err == nil {
			m.connected(p, conn.(*net.TCPConn))
			intro := make([]byte, probeHeader)
			m.p.put(intro, toServer, header{introduction, uint64(k - shapeTCPRoundTrips)})
			_, err = conn.Write(intro)
		}
		if err != nil {
			return fmt.Errorf("data connection %s: %w", p, err)
		}
	}
	return nil
}

// serveMixed is the server's end.
func (s *session) serveMixed() error {
	m := newMixed(s.token, toClient, s.job.Rate/8, s.job.duration())
	defer m.close()
	addresses, err := s.addresses(s.job.Family)
	if err != nil {
		return err
	}
	defer s.stop.Store(true) // a receiver may still wait for its client
	listeners := make([]*net.TCPListener, len(addresses))
	ready := message{Type: msgReady, Token: s.token}
	for i, a := range addresses {
		at := netip.AddrPortFrom(a, s.dataPort)
		if listeners[i], err = listenTCP(at, s.job.Congestion); err != nil {
			return fmt.Errorf("data port: %w", err)
		}
		defer listeners[i].Close()
		udp, port, err := listenUDP(at)
		if err != nil {
			return fmt.Errorf("data port: %w", err)
		}
		p := m.addPath(mixedPath{Address: a, TCP: listeners[i].Addr().(*net.TCPAddr).AddrPort().Port(), UDP: port}, udp)
		m.receivers = append(m.receivers, background(func() {
			if s.awaitPeer(udp, m.p, make([]byte, maxPayload+1), new(atomic.Uint64), p.take) {
				p.receive()
			}
		}))
		ready.Paths = append(ready.Paths, p.mixedPath)
	}
	if err := s.write(ready); err != nil {
		return err
	}
	for i, p := range m.paths {
		conns, err := s.acceptConns(listeners[i])
		if err != nil {
			return err
		}
		m.connected(p, conns...)
	}
	start, err := s.expect(msgStart)
	if err != nil {
		return err
	}
	if len(start.Paths) != len(m.paths) {
		return fmt.Errorf("start with %d paths where there are %d", len(start.Paths), len(m.paths))
	}
	for i, p := range m.paths {
		if p.Payload = start.Paths[i].Payload; p.Payload < leastMixed || p.Payload > mostMixed {
			return fmt.Errorf("payload %d: must be between %d and %d", p.Payload, leastMixed, mostMixed)
		}
	}
	if err := s.write(message{Type: msgReady}); err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- m.run() }()
	over := s.watch()
	if err = <-over; err != nil {
		m.abort()
		return errors.Join(err, <-ran)
	}
	if err = <-ran; err != nil {
		return err
	}
	m.rest(0)
	c := &counts{Shapes: m.shapes()}
	for _, p := range m.paths {
		c.Overflow += uint64(p.udp.overflow())
	}
	for _, f := range c.Shapes {
		c.Bytes += f.Verified
	}
	return s.write(message{Type: msgCounts, Counts: c})
}

// addresses are those a mixed session uses: the one that the client has reached, and one of the other family of the same interface.
func (s *session) addresses(version int) ([]netip.Addr, error) {
	here := s.dataAddr().Addr()
	if version != 0 {
		return []netip.Addr{here}, nil
	}
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		var other netip.Addr
		mine := false
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			at := p.Addr().Unmap()
			mine = mine || at == here.WithZone("")
			if at.Is4() != here.Is4() && (at.IsGlobalUnicast() || at.IsLoopback()) {
				other = at
			}
		}
		if mine && other.IsValid() {
			return []netip.Addr{here, other}, nil
		}
	}
	return nil, fmt.Errorf("the interface of %s has no address of the other family: give family=4 or family=6", here)
}

// udpEnd is the UDP socket of a path. One datagram at a time is sent: whether it may become fragments is a property of the socket.
type udpEnd struct {
	socket
	mu     sync.Mutex
	df     bool // fragments are forbidden
	errors errnos
}

func (u *udpEnd) refused() map[string]uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.errors.byName()
}

// give sends a datagram, or with control several, and says whether the kernel took it.
func (u *udpEnd) give(family int, data, control []byte, fragments bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if fragments == u.df {
		if err := fragmentation(int(u.socket), family == 4, fragments); err != nil {
			u.errors.add(unix.EOPNOTSUPP)
			return false
		}
		u.df = !fragments
	}
	for range 10 { // a second, by the socket's timeout
		_, err := unix.SendmsgN(int(u.socket), data, control, nil, 0)
		if err == nil {
			return true
		}
		if errno, is := err.(unix.Errno); is && !again(errno) {
			u.errors.add(errno)
			return false
		}
	}
	u.errors.add(unix.EAGAIN)
	return false
}
