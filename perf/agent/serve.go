package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/testbed"
)

const (
	// DefaultPort is an agent's control port.
	DefaultPort = 8479
	// DefaultData is the first of the two ports of its generators: TCP for their control connections, and the next one, TCP and UDP, for data.
	DefaultData = 8480

	// silence is how long a client may say nothing while nothing is being done for it.
	silence = 2 * time.Minute
)

// Config is how an agent serves.
type Config struct {
	Listen   netip.AddrPort
	Identity *Identity
	Data     uint16        // first of the two ports of the generators
	Limit    probe.Limit   // of what it sends, whatever it is asked for
	Longest  time.Duration // of one test
	Cores    int           // that generators and contenders may use; 0 = all
	XDP      bool          // contenders may have a program at this host's own device
	Program  string        // the weft binary
	Version  string        // of it
	Log      *zap.Logger
	Ready    func(netip.AddrPort) // called once, when clients can connect; may be nil
}

// Serve measures for clients, one at a time, until ctx ends. What a killed agent left behind it removes first.
func Serve(ctx context.Context, cfg Config) error {
	if left, err := testbed.Find(testbed.Dead); err == nil && !left.Empty() {
		cfg.Log.Info("removing what a killed process left", zap.Strings("namespaces", left.Namespaces))
		if err := left.Remove(); err != nil {
			cfg.Log.Warn("could not remove all of it: see `weft lab clean`", zap.Error(err))
		}
	}
	// Now, while every thread is in it: of the process's first thread, which /proc names, nobody knows what it will be used for.
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("bench serve: this network namespace: %w", err)
	}
	defer own.Close()
	place, err := newHere(cfg.Cores)
	if err != nil {
		return err
	}
	defer place.close()
	l, err := (&net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 4}}).
		Listen(ctx, "tcp", cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("bench serve: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	if err := queue(l.(*net.TCPListener), waiting); err != nil {
		return fmt.Errorf("bench serve: %w", err)
	}
	if cfg.Ready != nil {
		cfg.Ready(l.Addr().(*net.TCPAddr).AddrPort())
	}
	a := &agent{Config: cfg, here: place, netns: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), own.Fd()), busy: make(chan struct{}, 1), gate: newGate(cfg.Identity)}
	var all sync.WaitGroup
	defer all.Wait()
	others := rate.NewLimiter(othersRate, othersBurst)
	for {
		// While it measures nobody else can be served, only told so: they may not cost what is measured. Most wait in the kernel.
		if len(a.busy) > 0 {
			if err := others.Wait(ctx); err != nil {
				return nil // ctx ended
			}
		}
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("bench serve: %w", err)
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !a.gate.enter(from) {
			c.Close()
			continue
		}
		all.Go(func() {
			defer c.Close()
			t, err := a.gate.admit(ctx, c)
			a.gate.leave(from)
			if err == nil {
				a.client(ctx, t)
			}
		})
	}
}

const (
	// waiting is how many connections the kernel keeps until they are looked at; it answers no further ones.
	waiting = 64
	// othersRate and othersBurst bound how many connections a second are looked at while a client is served.
	othersRate  = 20
	othersBurst = 5
)

// queue sets how many connections wait for Accept (listen(2), which may be called again; package net asks for all that the system allows).
func queue(l *net.TCPListener, n int) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var listened error
	err = raw.Control(func(fd uintptr) { listened = unix.Listen(int(fd), n) })
	return errors.Join(err, listened)
}

// agent is a running agent.
type agent struct {
	Config
	here  *here
	netns string // file of the agent's own network namespace
	gate  *gate
	busy  chan struct{} // held by the client that is being served
}

// client serves a client that has proven itself, until it goes away.
func (a *agent) client(ctx context.Context, c net.Conn) {
	l := newLine(c)
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	default:
		_ = l.SetReadDeadline(time.Now().Add(patience))
		_, _ = l.read() // what it asks is not looked at; answered unread, it might never see the answer
		_ = l.write(reply{Error: "busy: the agent measures for somebody else, and two would measure each other"})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	s := newSession(a)
	a.Log.Info("a client", zap.Stringer("from", c.RemoteAddr()))
	defer func() {
		err := s.close()
		a.Log.Info("the client has gone, and all that was started for it", zap.Stringer("from", c.RemoteAddr()), zap.Error(err))
	}()
	// Read ahead, so that a client that goes away is noticed while something is being done for it.
	requests := make(chan []byte)
	go func() {
		defer cancel()
		defer close(requests)
		for {
			data, err := l.read()
			if err != nil {
				return
			}
			select {
			case requests <- data:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case data, ok := <-requests:
			if !ok || l.write(s.answer(ctx, data)) != nil {
				return
			}
		case <-time.After(silence):
			return
		case <-ctx.Done():
			return
		}
	}
}

// addresses are this host's.
func addresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("this host's addresses: %w", err)
	}
	var all []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Addr())
		}
	}
	return all, nil
}

func (a *agent) welcome() (*Welcome, error) {
	name, err := os.Hostname()
	list, aerr := addresses()
	host := machine.Fingerprint(a.Version, probe.OwnCongestion())
	return &Welcome{Name: name, Host: host, Addresses: list, Limit: a.Limit, Longest: a.Longest, Cores: a.Cores, Ports: [2]uint16{a.Data, a.Data + 1}},
		errors.Join(err, aerr)
}
