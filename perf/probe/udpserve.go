package probe

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settleQuiet without an arrival means that what is missing is lost. Paths with more than that
	// between two packets of a burst are not what this measures.
	settleQuiet = 20 * time.Millisecond
	// settleMost bounds the wait where packets keep trickling in.
	settleMost = 500 * time.Millisecond

	// moderation is how long the sink lets packets gather once it has caught up, as a network card
	// does with interrupts: a wake-up per packet would cost the cores that carry the traffic more than the
	// counting does. The socket's buffer holds a hundred times what comes in that time.
	moderation = 50 * time.Microsecond
)

// listenUDP opens the data port and leaves it to the client's first packet to connect it.
func (s *session) listenUDP() (socket, error) {
	conn, port, err := listenUDP(s.dataAddr())
	if err != nil {
		return -1, fmt.Errorf("data port: %w", err)
	}
	if err := s.ready(port); err != nil {
		conn.close()
		return -1, err
	}
	return conn, nil
}

// awaitPeer waits for the session's first datagram and connects the socket to where it came from, so that the kernel keeps strangers
// out. Those that came before it are counted, those that lie in the queue behind it are left out. The session's own are given to take.
func (s *session) awaitPeer(conn socket, p *pattern, buf []byte, strangers *atomic.Uint64, take func(data []byte)) (ok bool) {
	var peer netip.AddrPort
	for !s.stop.Load() {
		flags := 0
		if peer.IsValid() {
			flags = unix.MSG_DONTWAIT
		}
		n, from, err := unix.Recvfrom(int(conn), buf, flags)
		switch {
		case err == unix.EAGAIN && peer.IsValid():
			return true
		case err != nil && again(err):
		case err != nil:
			return false
		case !peer.IsValid():
			if _, own := p.open(buf[:n], n, toServer); !own {
				strangers.Add(1)
				continue
			}
			if unix.Connect(int(conn), from) != nil {
				return false
			}
			peer = addrPort(from)
			take(buf[:n])
		case addrPort(from) == peer:
			take(buf[:n])
		}
	}
	return false
}

// addrPort is where a datagram came from.
func addrPort(from unix.Sockaddr) netip.AddrPort {
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// serveUDPSink counts trials and says, each time the client asks, what arrived of one.
func (s *session) serveUDPSink() error {
	conn, err := s.listenUDP()
	if err != nil {
		return err
	}
	defer conn.close()
	p := s.pattern()
	rx := &receiver{pattern: p}
	// A byte more than promised, so that nothing longer passes for it.
	batch := newBurst(udpBatch, s.job.Payload+1)
	if s.job.GRO {
		if batch, err = conn.joined(); err != nil {
			return err
		}
	}
	var strangers atomic.Uint64
	wait := background(func() {
		if !s.awaitPeer(conn, p, batch.buffer(0), &strangers, func(data []byte) { rx.one(data) }) {
			return
		}
		for clock := startClock(); !s.stop.Load(); clock.now() {
			if n, errno := conn.recv(batch, 0); errno == 0 {
				rx.count(batch, n, time.Now())
				if n < len(batch.msgs)/2 {
					nap(moderation)
				}
			}
		}
		for n, errno := conn.recv(batch, unix.MSG_DONTWAIT); errno == 0; n, errno = conn.recv(batch, unix.MSG_DONTWAIT) {
			rx.count(batch, n, time.Now())
		}
	})
	defer wait()
	defer s.stop.Store(true)

	for corrupt := uint64(0); ; {
		m, err := s.read()
		if err != nil {
			return err
		}
		var answer counts
		switch m.Type {
		case msgCount:
			var t tally
			t, corrupt = s.settle(conn, rx, m.Trial, m.Sent, corrupt)
			answer = t.counts()
			answer.CorruptPackets = corrupt
		case msgStop:
			s.stop.Store(true)
			wait()
			answer = rx.total()
		default:
			return fmt.Errorf("%q where %q was due", m.Type, msgCount)
		}
		answer.Overflow, answer.Strangers = uint64(conn.overflow()), strangers.Load()
		if err := s.write(message{Type: msgCounts, Trial: m.Trial, Counts: &answer}); err != nil || m.Type == msgStop {
			return err
		}
	}
}

// settle waits until all that was sent has arrived, or nothing comes any more. judged is how many corrupt datagrams belong to
// trials before.
func (s *session) settle(conn socket, rx *receiver, trial uint16, sent, judged uint64) (t tally, corrupt uint64) {
	begin := time.Now()
	for {
		t, corrupt = rx.snapshot(trial)
		quiet := time.Since(begin)
		if !t.last.IsZero() {
			quiet = min(quiet, time.Since(t.last))
		}
		if t.packets+corrupt-judged >= sent || quiet > settleQuiet && !conn.queued() || time.Since(begin) > settleMost || s.stop.Load() {
			return t, corrupt
		}
		time.Sleep(time.Millisecond)
	}
}

// serveUDPEcho answers each datagram with one of the same number and length.
func (s *session) serveUDPEcho() error {
	conn, err := s.listenUDP()
	if err != nil {
		return err
	}
	defer conn.close()
	p := s.pattern()
	rx := &receiver{pattern: p}
	buf, reply := make([]byte, s.job.Payload+1), make([]byte, s.job.Payload+1)
	var replies uint64
	var strangers atomic.Uint64
	allowed := allowance{rate: s.limit.rate(0, s.job.Payload)}
	answer := func(data []byte) {
		h, ok := rx.one(data)
		if !ok || !allowed.take() {
			return // whose answer it would be is not known, or it would be too many
		}
		// One request is on the way at a time: read and write are what recvmmsg and sendmmsg would only dress up.
		p.put(reply[:len(data)], toClient, h)
		if k, err := unix.Write(int(conn), reply[:len(data)]); err == nil && k == len(data) {
			replies++
		}
	}
	wait := background(func() {
		if !s.awaitPeer(conn, p, buf, &strangers, answer) {
			return
		}
		for clock := startClock(); !s.stop.Load(); clock.now() {
			if n, err := unix.Read(int(conn), buf); err == nil {
				answer(buf[:n])
			}
		}
	})
	over := s.watch()
	err = <-over
	s.stop.Store(true)
	wait()
	if err != nil {
		return err
	}
	c := rx.total()
	c.Replies, c.Overflow, c.Strangers = replies, uint64(conn.overflow()), strangers.Load()
	return s.write(message{Type: msgCounts, Counts: &c})
}
