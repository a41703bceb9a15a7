package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config is how to serve.
type Config struct {
	Listen   netip.AddrPort       // control address; port 0 = one the kernel picks
	DataPort uint16               // one port for all data, to let it through a firewall; 0 = a fresh one per test
	For      time.Duration        // stop after this long; 0 = until ctx ends
	Ready    func(netip.AddrPort) `json:"-"` // called once, when clients can connect; may be nil
	Key      []byte               // that clients must have, too; nil = anybody may measure
	Limit    Limit                // of what this end sends
}

// Serve answers clients until ctx ends or cfg.For is over (both nil) or the address cannot be had.
// Several tests may run at once. It returns when all that it started has ended.
func Serve(ctx context.Context, cfg Config) error {
	if cfg.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.For)
		defer cancel()
	}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("bench serve: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	if cfg.Ready != nil {
		cfg.Ready(l.Addr().(*net.TCPAddr).AddrPort())
	}
	var sessions sync.WaitGroup
	defer sessions.Wait()
	places := make(chan struct{}, maxSessions)
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("bench serve: %w", err)
		}
		s := &session{control: newControl(conn), dataPort: cfg.DataPort, key: cfg.Key, limit: cfg.Limit}
		select {
		case places <- struct{}{}:
		default:
			s.refuse(fmt.Errorf("busy: %d tests are running", maxSessions))
			continue
		}
		sessions.Go(func() {
			defer func() { <-places }()
			defer context.AfterFunc(ctx, func() { s.end() })()
			s.serve()
		})
	}
}

// pattern is what the session's payloads hold.
func (s *session) pattern() *pattern {
	p := newPattern(s.token)
	p.blind = s.job.Blind
	return p
}

// session is the server's side of one test.
type session struct {
	*control
	dataPort uint16
	key      []byte
	limit    Limit
	job      job
	token    uint64
	stop     atomic.Bool // every data goroutine looks at it at least once a tick
}

// end makes everything in the session return.
func (s *session) end() {
	s.stop.Store(true)
	s.Close()
}

// refuse tells the client why and hangs up. Nothing can be done if that fails too.
func (s *session) refuse(err error) {
	_ = s.write(message{Type: msgError, Error: err.Error()})
	s.Close()
}

func (s *session) serve() {
	defer s.end()
	var proven proof
	if s.key != nil {
		var err error
		if proven, err = challenge(s.Conn, s.key); err != nil {
			return // not a word to strangers
		}
	}
	if err := s.hello(); err != nil {
		s.refuse(err)
		return
	}
	if s.key != nil {
		s.token = proven.token()
	}
	// The client's own end of the test decides; this only bounds what a vanished one leaves behind.
	if err := s.SetReadDeadline(time.Now().Add(s.job.duration() + 6*controlTimeout)); err != nil {
		return
	}
	var err error
	switch s.job.Role {
	case roleTCPSink:
		err = s.serveTCPSink()
	case roleTCPEcho:
		err = s.serveTCPEcho()
	case roleTCPAccept:
		err = s.serveTCPAccept()
	case roleUDPSink:
		err = s.serveUDPSink()
	case roleUDPEcho:
		err = s.serveUDPEcho()
	case roleMixed:
		err = s.serveMixed()
	}
	if err != nil {
		s.refuse(err)
	}
}

// hello reads and checks the client's first message.
func (s *session) hello() error {
	if err := s.SetReadDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	m, err := s.read()
	if err != nil {
		return err
	}
	if m.Type != msgHello {
		return fmt.Errorf("%q where %q was due", m.Type, msgHello)
	}
	if m.Version != Version {
		return fmt.Errorf("version: the server speaks %s, the client %q: use the same weft at both ends", Version, m.Version)
	}
	if err := m.Job.validate(); err != nil {
		return err
	}
	if m.Job.Congestion != "" {
		if err := registered(m.Job.Congestion); err != nil {
			return err
		}
	}
	s.job = *m.Job
	if s.job.Role == roleMixed && s.key != nil {
		return errMixed
	}
	var token [8]byte
	rand.Read(token[:])
	s.token = binary.BigEndian.Uint64(token[:])
	return nil
}

// ready tells the client where the data goes.
func (s *session) ready(port uint16) error {
	m := message{Type: msgReady, Port: port, Token: s.token}
	if s.key != nil {
		m.Token = 0 // the client has it
	}
	return s.write(m)
}

// dataAddr is the address data sockets listen on: the one the client already reached.
func (s *session) dataAddr() netip.AddrPort {
	local := s.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(local.Addr().Unmap(), s.dataPort)
}

// expect reads one message of the wanted type.
func (s *session) expect(want string) (message, error) {
	m, err := s.read()
	if err != nil {
		return message{}, err
	}
	if m.Type != want {
		return message{}, fmt.Errorf("%q where %q was due", m.Type, want)
	}
	return m, nil
}

// watch sets the stop flag when the client says stop or goes away; read from then on is its own.
// The channel gives nil for an orderly stop.
func (s *session) watch() <-chan error {
	over := make(chan error, 1)
	go func() {
		_, err := s.expect(msgStop)
		s.stop.Store(true)
		over <- err
	}()
	return over
}

// listenTCP opens the data port.
func (s *session) listenTCP() (*net.TCPListener, error) {
	l, err := listenTCP(s.dataAddr(), s.job.Congestion)
	if err != nil {
		return nil, fmt.Errorf("data port: %w", err)
	}
	return l, s.ready(l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// accept takes the job's connections.
func (s *session) accept(l *net.TCPListener) ([]socket, error) {
	conns, err := s.acceptConns(l)
	if err != nil {
		return nil, err
	}
	var flows []socket
	for _, c := range conns {
		flow, ferr := detach(c)
		if ferr == nil {
			flows = append(flows, flow)
		}
		err = errors.Join(err, ferr)
	}
	if err != nil {
		closeAll(flows)
		return nil, err
	}
	return flows, nil
}

// acceptConns takes the job's connections, those that begin with a header of the session's, in the order of their numbers.
func (s *session) acceptConns(l *net.TCPListener) ([]*net.TCPConn, error) {
	flows, came := make([]*net.TCPConn, s.job.Flows), 0
	fail := func(err error) ([]*net.TCPConn, error) {
		for _, c := range flows {
			if c != nil {
				c.Close()
			}
		}
		return nil, err
	}
	p := newPattern(s.token)
	deadline := time.Now().Add(2 * controlTimeout)
	for came < len(flows) {
		if err := l.SetDeadline(time.Now().Add(tick)); err != nil {
			return fail(err)
		}
		c, err := l.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(deadline) && !s.stop.Load() {
			continue
		}
		if err != nil {
			return fail(fmt.Errorf("%d of %d data connections came: %w", came, len(flows), err))
		}
		var intro [probeHeader]byte
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		_, err = io.ReadFull(c, intro[:])
		h, ours := p.open(intro[:], len(intro), toServer)
		if err != nil || !ours || h.trial != introduction || h.seq >= uint64(len(flows)) || flows[h.seq] != nil {
			c.Close() // a stranger
			continue
		}
		_ = c.SetReadDeadline(time.Time{})
		flows[h.seq] = c.(*net.TCPConn)
		came++
	}
	return flows, nil
}

func closeAll(list []socket) {
	for _, s := range list {
		s.close()
	}
}
