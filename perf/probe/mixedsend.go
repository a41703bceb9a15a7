package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spells makes a sender speak in spells: it gathers the right to send at its rate, until that is enough for a random amount, spends it as fast as it can,
// and is silent again.
type spells struct {
	dice    *rand.Rand
	rate    float64 // bytes a second
	length  time.Duration
	begin   time.Time
	quit    <-chan struct{}
	last    time.Duration
	credit  float64 // bytes
	enough  float64 // to begin with
	talking bool
}

// spellMost is what a spell has at most: what gathers in so long.
const spellMost = 2 * time.Second

func (m *mixed) spells(p *mixPath, shape int, begin time.Time) *spells {
	return &spells{
		dice:   rand.New(rand.NewPCG(m.p.token, uint64(p.number(shape))<<1|uint64(m.sends))),
		rate:   m.rate * shapes[shape].share / float64(len(m.paths)),
		length: m.duration, begin: begin, quit: m.quit,
	}
}

// wait waits until n bytes may be sent; false: the time is over.
func (s *spells) wait(n int) bool {
	need := float64(n)
	for {
		now := time.Since(s.begin)
		if now >= s.length {
			return false
		}
		s.credit = min(s.credit+(now-s.last).Seconds()*s.rate, max(s.rate*spellMost.Seconds(), need))
		s.last = now
		if !s.talking {
			s.talking = s.credit >= max(s.enough, need)
		}
		if s.talking && s.credit >= need {
			s.credit -= need
			return true
		}
		if s.talking {
			// As often within a factor of two of a little as of a lot.
			s.talking, s.enough = false, need*math.Pow(max(s.rate*spellMost.Seconds()/need, 1), s.dice.Float64())
		}
		missing := time.Duration((max(s.enough, need) - s.credit) / s.rate * 1e9)
		select {
		case <-time.After(min(missing, s.length-now) + time.Microsecond):
		case <-s.quit:
			return false
		}
	}
}

// between draws a length as often within a factor of two of the least as of the most.
func (s *spells) between(least, most int) int {
	if most <= least {
		return least
	}
	return int(float64(least) * math.Pow(float64(most)/float64(least), s.dice.Float64()))
}

const (
	// leastMixed and mostMixed bound what a path's largest datagram may be in this test; where a path carries more, it is not used.
	leastMixed, mostMixed = 1000, 9000
	// mostFragmented is the payload of the largest datagram of fragments, all headers of both families taken off.
	mostFragmented = 65535 - ipv6Header - udpHeader - 8
)

// sendBursts sends super-packets: up to 64 datagrams of one size, the last one shorter, cut by the kernel.
func (p *mixPath) sendBursts(s *spells, a *account) error {
	arena := make([]byte, 64<<10)
	control := ancillary{size: 0}
	control.Level, control.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	control.SetLen(unix.CmsgLen(2))
	for seq := uint64(0); ; {
		size := s.between(100, p.Payload) | 1
		size = min(size, p.Payload)
		n := s.between(2, min(MaxSegments, mostFragmented/size))
		last := probeHeader + s.dice.IntN(size-probeHeader+1)
		total := (n-1)*size + last
		if !s.wait(total) {
			return nil
		}
		for i := range n {
			p.p.put(arena[i*size:min((i+1)*size, total)], p.sends, header{uint16(p.number(shapeBursts)), seq + uint64(i)})
		}
		binary.NativeEndian.PutUint16(control.data(), uint16(size))
		if p.udp.give(p.family(), arena[:total], control.bytes(), false) {
			a.sent.Add(uint64(n))
		}
		seq += uint64(n)
	}
}

// sendSmall sends packets of 64 to 200 bytes.
func (p *mixPath) sendSmall(s *spells, a *account) error {
	return p.sendSingle(s, a, shapeSmall, probeHeader, 160)
}

// sendFragments sends datagrams larger than the path's MTU, up to the largest there are.
func (p *mixPath) sendFragments(s *spells, a *account) error {
	return p.sendSingle(s, a, shapeFragments, p.Payload+1, mostFragmented)
}

func (p *mixPath) sendSingle(s *spells, a *account, shape, least, most int) error {
	b := make([]byte, most)
	for seq := uint64(0); ; seq++ {
		data := b[:s.between(least, most)]
		if !s.wait(len(data)) {
			return nil
		}
		p.p.put(data, p.sends, header{uint16(p.number(shape)), seq})
		if p.udp.give(p.family(), data, nil, shape == shapeFragments) {
			a.sent.Add(1)
		}
	}
}

// askUDP sends requests, each when the last one's answer has come or is given up.
func (p *mixPath) askUDP(s *spells, a *account) error {
	b := make([]byte, p.Payload)
	for seq := uint64(0); ; seq++ {
		data := b[:s.between(probeHeader, p.Payload)]
		if !s.wait(len(data)) {
			return nil
		}
		p.p.put(data, p.sends, header{uint16(p.number(shapeUDPRoundTrips)), seq})
		if !p.udp.give(p.family(), data, nil, false) {
			continue
		}
		a.sent.Add(1)
		for late := time.After(lostAfter); ; {
			select {
			case got := <-p.replies:
				if got != seq {
					continue
				}
			case <-late:
			case <-p.quit:
				return nil
			}
			break
		}
	}
}

// receive takes datagrams until over.
func (p *mixPath) receive() {
	batch := newBurst(4, maxPayload+1)
	for !p.over.Load() {
		n, errno := p.udp.recv(batch, 0)
		if errno != 0 {
			continue
		}
		for i := range n {
			p.take(batch.received(i))
		}
	}
}

// take checks a datagram, and answers it where it is a request.
func (p *mixPath) take(data []byte) {
	p.arrived.Store(time.Now().UnixNano())
	h, ok := p.p.open(data, len(data), p.receives())
	shape := int(h.trial) - p.number(0)
	switch {
	case ok && h.trial == introduction:
		p.reply(data, h)
		return
	case !ok || shape < 0 || shape >= shapeTCPRoundTrips:
		p.unknown.stray(p.p, data, p.receives())
		return
	}
	a := p.accounts[shape]
	if _, ok := a.datagram(p.p, data, p.receives()); !ok || a.win.see(h.seq) == duplicate {
		return
	}
	a.received.Add(1)
	if shape != shapeUDPRoundTrips {
		return
	}
	if p.receives() == toServer {
		if p.reply(data, h) {
			a.sent.Add(1)
		}
		return
	}
	select {
	case p.replies <- h.seq:
	default: // the asker has given it up
	}
}

// reply sends a datagram of the same number and length back.
func (p *mixPath) reply(data []byte, h header) bool {
	if p.receives() != toServer {
		return false
	}
	p.p.put(data, p.sends, h)
	return p.udp.give(p.family(), data, nil, false)
}

// reach finds out what the path carries unfragmented: a datagram of that size comes back.
func (p *mixPath) reach(c *client) error {
	buf := make([]byte, maxPayload+1)
	for seq, begin := uint64(0), time.Now(); time.Since(begin) < pathPatience && !c.stop.Load(); seq++ {
		mtu, err := p.udp.pathMTU(p.Address)
		if err != nil {
			return fmt.Errorf("read the path's MTU: %w", err)
		}
		p.Payload = min(mtu-ipHeader(p.Address)-udpHeader, mostMixed)
		if p.Payload < leastMixed {
			return fmt.Errorf("the path to %s carries IP packets of at most %d: the test needs %d", p.Address, mtu, leastMixed+ipHeader(p.Address)+udpHeader)
		}
		p.p.put(buf[:p.Payload], p.sends, header{introduction, seq})
		if _, err := unix.Write(int(p.udp.socket), buf[:p.Payload]); err != nil {
			nap(time.Millisecond) // EMSGSIZE: the MTU is known now
			continue
		}
		for n, err := unix.Read(int(p.udp.socket), buf); err == nil; n, err = unix.Read(int(p.udp.socket), buf) {
			if h, ok := p.p.open(buf[:n], n, p.receives()); ok && h == (header{introduction, seq}) {
				return nil
			}
		}
	}
	if err := c.failed(); err != nil {
		return err
	}
	return fmt.Errorf("no UDP packet of %d bytes came back %s in %s: is UDP filtered, or a link's MTU smaller?", p.Payload, p, pathPatience)
}

// sizeOf is the length of message n of the TCP round trips, which both ends know: for 256 of them what fits a segment, for the next of any
// length up to a few segments.
func (p *pattern) sizeOf(flow int, n uint64) int {
	drawn := mix(p.token ^ uint64(flow)<<32 ^ n)
	if mix(p.token^n/256)&1 == 0 {
		return 1 + int(drawn%1300)
	}
	return 1 + int(drawn%6000)
}

// askTCP sends requests, each when the last one's answer has come.
func (p *mixPath) askTCP(c *net.TCPConn, shape int, s *spells) error {
	a, buf := p.accounts[shape], make([]byte, 8<<10)
	flow := p.number(shape)
	for n := uint64(0); ; n++ {
		size := p.p.sizeOf(flow, n)
		if !s.wait(size) {
			break
		}
		if _, err := c.Write(p.p.frame(toServer, flow, n)[:size]); err != nil {
			return err
		}
		a.sent.Add(1)
		if _, err := io.ReadFull(c, buf[:size]); err != nil {
			return err
		}
		a.received.Add(1)
		a.compare(p.p, buf[:size], p.p.frame(toClient, flow, n), func() string { return fmt.Sprintf("%s: flow %d, reply %d", toClient, flow, n) })
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, buf[:1]); err != io.EOF {
		return fmt.Errorf("more than was asked for: %v", err)
	}
	return nil
}

// answerTCP answers each request with a message of the same number and length.
func (p *mixPath) answerTCP(c *net.TCPConn, shape int) error {
	a, buf := p.accounts[shape], make([]byte, 8<<10)
	flow := p.number(shape)
	for n := uint64(0); ; n++ {
		size := p.p.sizeOf(flow, n)
		if _, err := io.ReadFull(c, buf[:size]); err == io.EOF {
			return c.CloseWrite()
		} else if err != nil {
			return err
		}
		a.received.Add(1)
		a.compare(p.p, buf[:size], p.p.frame(toServer, flow, n), func() string { return fmt.Sprintf("%s: flow %d, request %d", toServer, flow, n) })
		if _, err := c.Write(p.p.frame(toClient, flow, n)[:size]); err != nil {
			return err
		}
		a.sent.Add(1)
	}
}

// fill writes a flow in pieces of any length up to 64 KB.
func (p *mixPath) fill(c *net.TCPConn, shape int, s *spells) error {
	a, flow := p.accounts[shape], p.number(shape)
	for pos := uint64(0); ; {
		n := s.between(1, 64<<10)
		if !s.wait(n) {
			return c.CloseWrite()
		}
		for n > 0 {
			piece := p.p.frame(p.sends, flow, pos/frameSize)[pos%frameSize:]
			piece = piece[:min(len(piece), n)]
			if _, err := c.Write(piece); err != nil {
				return err
			}
			a.sent.Add(uint64(len(piece)))
			pos, n = pos+uint64(len(piece)), n-len(piece)
		}
	}
}

// drain reads and checks a flow to its end.
func (p *mixPath) drain(c *net.TCPConn, shape int) error {
	a, buf := p.accounts[shape], make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		a.take(buf[:n])
		a.received.Add(uint64(n))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// withMSS has a connection's segments be of at most mss bytes, both ways; 0 = what the path carries.
func withMSS(control func(string, string, syscall.RawConn) error, mss int) func(string, string, syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		if err := control(network, address, c); err != nil || mss == 0 {
			return err
		}
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, mss) }); cerr != nil {
			return cerr
		}
		if err != nil {
			return fmt.Errorf("set TCP_MAXSEG %d: %w", mss, err)
		}
		return nil
	}
}
