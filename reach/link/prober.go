package link

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// breath is between two looks at all targets, whatever is due: with thousands something always is.
const breath = 5 * time.Millisecond

// answersMost bounds how many probes of one peer are answered in a second.
const answersMost = 100

// Prober probes targets and answers peers. All but Run may be called at any time.
type Prober struct {
	log *zap.Logger

	mu      sync.Mutex
	tracks  map[id]*track
	nonces  map[uint64]*track
	peers   map[netip.Addr]int // inner addresses of peers → how many of their probes were answered in this second
	conns   map[netip.Addr]*conn
	most    int            // probes of one peer that are answered in a second
	index   map[string]int // of devices; forgotten each second, and where the kernel says otherwise
	readers sync.WaitGroup
	closed  bool

	again chan struct{} // holds a token when the targets have changed
	news  chan struct{} // holds a token when a State has
}

// id tells targets apart.
type id struct {
	node string
	way  string
}

// New makes a Prober that probes nobody yet. Its sockets belong to the network namespace of whoever calls Aim.
func New(log *zap.Logger) *Prober {
	if log == nil {
		log = zap.NewNop()
	}
	return &Prober{log: log, tracks: map[id]*track{}, nonces: map[uint64]*track{}, peers: map[netip.Addr]int{}, conns: map[netip.Addr]*conn{}, index: map[string]int{}, most: answersMost,
		again: make(chan struct{}, 1), news: make(chan struct{}, 1)}
}

// News gets a token when the State of a target has changed.
func (p *Prober) News() <-chan struct{} { return p.news }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Aim says which targets to probe from now on, from which own addresses, and which inner addresses peers have, whose probes are
// answered. What is known of a target that stays is kept.
func (p *Prober) Aim(own, peers []netip.Addr, targets []Target) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	known := make(map[netip.Addr]int, len(peers))
	for _, a := range peers {
		known[a] = p.peers[a]
	}
	p.peers = known
	tracks := make(map[id]*track, len(targets))
	for _, target := range targets {
		key := id{target.Node, target.Way.String()}
		t := p.tracks[key]
		if t == nil {
			t = &track{}
		}
		t.Target = target
		tracks[key] = t
	}
	for key, t := range p.tracks {
		if tracks[key] == nil {
			for _, s := range t.sent {
				delete(p.nonces, s.nonce)
			}
		}
	}
	p.tracks = tracks
	poke(p.again)
	return p.open(own)
}

// open has a socket at each of these addresses, and no others. The lock is held.
func (p *Prober) open(own []netip.Addr) error {
	wanted := map[netip.Addr]bool{}
	var errs []error
	for _, a := range own {
		wanted[a] = true
		if p.conns[a] != nil {
			continue
		}
		c, err := listen(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.conns[a] = c
		p.readers.Go(func() { p.read(c) })
	}
	for a, c := range p.conns {
		if !wanted[a] {
			c.Close()
			delete(p.conns, a)
		}
	}
	return errors.Join(errs...)
}

// State is what is known of a way to a peer.
func (p *Prober) State(node, way string) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.tracks[id{node, way}]; t != nil {
		return t.State
	}
	return State{}
}

// Close ends all sockets.
func (p *Prober) Close() {
	p.mu.Lock()
	p.closed = true
	for a, c := range p.conns {
		c.Close()
		delete(p.conns, a)
	}
	p.mu.Unlock()
	p.readers.Wait()
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) {
	second := time.NewTicker(time.Second)
	defer second.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.again:
		case <-second.C:
			p.mu.Lock()
			for a := range p.peers {
				p.peers[a] = 0
			}
			clear(p.index)
			p.mu.Unlock()
			continue
		case <-timer.C:
		}
		timer.Reset(p.turn(time.Now()))
	}
}

// turn sends what is due and takes note of what was lost; it returns when there is something to do again.
func (p *Prober) turn(now time.Time) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait = time.Hour
	chosen := 0
	for _, t := range p.tracks {
		if t.Chosen {
			chosen++
		}
	}
	others := len(p.tracks) - chosen
	// The budget is for both kinds: a standby costs a fifth of a way that traffic goes.
	stretch := max(1, (float64(chosen)/interval.Seconds()+float64(others)/standby.Seconds())/budget)
	for _, t := range p.tracks {
		changed := t.expired(now)
		every := time.Duration(float64(standby) * stretch)
		if t.Chosen || t.Known && !t.Up { // to return soon, it has to be looked at often
			every = time.Duration(float64(interval) * stretch)
		}
		if t.due.IsZero() || now.Sub(t.due) > every { // not all at once
			t.due = now.Add(mathrand.N(every))
		}
		if now.Before(t.due.Add(-every)) { // it has become more urgent
			t.due = now
		}
		if !now.Before(t.due) {
			t.due = t.due.Add(every)
			if err := p.send(t, now); err != nil && t.failed(err, now) {
				changed = true
			}
		}
		if changed {
			poke(p.news)
		}
		wait = min(wait, t.due.Sub(now))
		if at, waiting := t.expires(); waiting {
			wait = min(wait, at.Sub(now))
		}
	}
	return max(wait, breath)
}

// send sends a probe. The lock is held.
func (p *Prober) send(t *track, now time.Time) error {
	c := p.conns[t.Source]
	if c == nil {
		return fmt.Errorf("no socket at %v", t.Source)
	}
	index, known := p.index[t.Device]
	if !known {
		device, err := net.InterfaceByName(t.Device)
		if err != nil {
			return err
		}
		index = device.Index
		p.index[t.Device] = index
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	nonce := binary.BigEndian.Uint64(random[:])
	var b [probeSize]byte
	message{kindProbe, nonce}.put(b[:])
	err := c.send(b[:], t.Addr, index)
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS): // it is not the way that fails
		return nil
	case known: // the device may have been made anew
		delete(p.index, t.Device)
		return p.send(t, now)
	default:
		return err
	}
	delete(p.nonces, t.sent[t.next%memory].nonce)
	p.nonces[nonce] = t
	t.probe(nonce, now)
	return nil
}

// read takes what comes in at one address until it is closed.
func (p *Prober) read(c *conn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // a word about a probe that did not arrive: it will be missed
			time.Sleep(time.Millisecond)
			continue
		}
		m, ok := parse(b[:n])
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !ok || from.Port() != Port {
			continue
		}
		p.mu.Lock()
		answered, known := p.peers[from.Addr()]
		answer := known && m.kind == kindProbe && answered < p.most
		if answer {
			p.peers[from.Addr()]++
		}
		if t := p.nonces[m.nonce]; known && m.kind == kindAnswer && t != nil && t.Addr == from.Addr() && t.answered(m.nonce, time.Now()) {
			poke(p.news)
		}
		p.mu.Unlock()
		if answer {
			message{kindAnswer, m.nonce}.put(b[:n])
			_ = c.send(b[:n], from.Addr(), 0) // else it is missed, as others are that get lost
		}
	}
}

// conn is a socket at one of the node's inner addresses.
type conn struct {
	*net.UDPConn
	local netip.Addr
	v4    *ipv4.PacketConn
	v6    *ipv6.PacketConn
}

// listen opens a socket at an address that a device may not have yet.
func listen(local netip.Addr) (*conn, error) {
	network := "udp4"
	if local.Is6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		failed := raw.Control(func(fd uintptr) {
			if local.Is6() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			}
			err = os.NewSyscallError("IP_FREEBIND", err)
		})
		return errors.Join(failed, err)
	}}
	pc, err := lc.ListenPacket(context.Background(), network, netip.AddrPortFrom(local, Port).String())
	if err != nil {
		return nil, fmt.Errorf("link: socket for probes: %w: see `ss -ulnp`, or let no other process have UDP port %d of %v", err, Port, local)
	}
	c := &conn{UDPConn: pc.(*net.UDPConn), local: local}
	if local.Is6() {
		c.v6 = ipv6.NewPacketConn(pc)
	} else {
		c.v4 = ipv4.NewPacketConn(pc)
	}
	return c, nil
}

// send sends to a peer's inner address by a device; 0 = by which the kernel likes.
func (c *conn) send(b []byte, to netip.Addr, device int) (err error) {
	addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, Port))
	if c.v6 != nil {
		_, err = c.v6.WriteTo(b, &ipv6.ControlMessage{Src: c.local.AsSlice(), IfIndex: device}, addr)
	} else {
		_, err = c.v4.WriteTo(b, &ipv4.ControlMessage{Src: c.local.AsSlice(), IfIndex: device}, addr)
	}
	return err
}
