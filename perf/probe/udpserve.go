package probe

import (
	"fmt"
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

// awaitPeer waits for the session's first datagram, connects the socket to where it came from, so
// that the kernel keeps strangers out, and leaves the datagram in the queue.
func (s *session) awaitPeer(conn socket) (ok bool) {
	buf := make([]byte, probeHeader)
	for !s.stop.Load() {
		n, from, err := unix.Recvfrom(int(conn), buf, unix.MSG_PEEK)
		if err != nil && again(err) {
			continue
		}
		if err != nil {
			return false
		}
		if h, ok := parseHeader(buf[:n]); ok && h.token == uint32(s.token) {
			return unix.Connect(int(conn), from) == nil
		}
		_, _, _ = unix.Recvfrom(int(conn), buf, 0) // a stranger's
	}
	return false
}

// serveUDPSink counts trials and says, each time the client asks, what arrived of one.
func (s *session) serveUDPSink() error {
	conn, err := s.listenUDP()
	if err != nil {
		return err
	}
	defer conn.close()
	rx := &receiver{token: uint32(s.token)}
	// A byte more than promised, so that nothing longer passes for it.
	batch := newBurst(udpBatch, s.job.Payload+1)
	if s.job.GRO {
		if batch, err = conn.joined(); err != nil {
			return err
		}
	}
	wait := background(func() {
		if !s.awaitPeer(conn) {
			return
		}
		for clock := startClock(); !s.stop.Load(); clock.now() {
			if n, errno := conn.recv(batch); errno == 0 {
				rx.count(batch, n, time.Now())
				if n < len(batch.msgs)/2 {
					nap(moderation)
				}
			}
		}
	})
	defer wait()
	defer s.stop.Store(true)

	dropped := func(c counts) *counts { c.Overflow = uint64(conn.overflow()); return &c }
	for {
		m, err := s.read()
		if err != nil {
			return err
		}
		var answer counts
		switch m.Type {
		case msgCount:
			t := s.settle(rx, m.Trial, m.Sent)
			answer = t.counts()
		case msgStop:
			t := rx.total()
			answer = t.counts()
		default:
			return fmt.Errorf("%q where %q was due", m.Type, msgCount)
		}
		if err := s.write(message{Type: msgCounts, Trial: m.Trial, Counts: dropped(answer)}); err != nil || m.Type == msgStop {
			return err
		}
	}
}

// settle waits until all that was sent has arrived, or nothing comes any more.
func (s *session) settle(rx *receiver, trial uint32, sent uint64) tally {
	begin := time.Now()
	for {
		t := rx.snapshot(trial)
		quiet := time.Since(begin)
		if !t.last.IsZero() {
			quiet = min(quiet, time.Since(t.last))
		}
		if t.packets >= sent || quiet > settleQuiet || time.Since(begin) > settleMost || s.stop.Load() {
			return t
		}
		time.Sleep(time.Millisecond)
	}
}

// serveUDPEcho answers each datagram with itself.
func (s *session) serveUDPEcho() error {
	conn, err := s.listenUDP()
	if err != nil {
		return err
	}
	defer conn.close()
	rx := &receiver{token: uint32(s.token)}
	batch := newBurst(1, s.job.Payload)
	var replies uint64
	wait := background(func() {
		if !s.awaitPeer(conn) {
			return
		}
		for clock := startClock(); !s.stop.Load(); clock.now() {
			// One request is on the way at a time: read and write are what recvmmsg and sendmmsg would only dress up.
			n, err := unix.Read(int(conn), batch.buffer(0))
			if err != nil {
				continue
			}
			batch.msgs[0].len = uint32(n)
			if k, err := unix.Write(int(conn), batch.buffer(0)[:n]); err == nil && k == n {
				replies++
			}
			rx.count(batch, 1, time.Time{})
		}
	})
	over := s.watch()
	err = <-over
	s.stop.Store(true)
	wait()
	if err != nil {
		return err
	}
	t := rx.total()
	c := t.counts()
	c.Replies, c.Overflow = replies, uint64(conn.overflow())
	return s.write(message{Type: msgCounts, Counts: &c})
}
