package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// client is the running side's control connection and its stop flag. Whatever ends the test early
// (cancellation, the server gone) sets the flag, and every data goroutine looks at it at least once a tick.
type client struct {
	*control
	stop    atomic.Bool
	inbox   chan message
	dead    chan struct{} // closed when nothing more arrives; err says why
	err     error
	release func() bool
	pace    allowance // of transactions
}

// connect opens the control connection and has the server take the role.
func connect(ctx context.Context, s Spec, j job) (*client, message, error) {
	j.DurationMS, j.Blind = s.Duration.Milliseconds(), s.blind()
	if j.Role == roleMixed && s.Key != nil {
		return nil, message{}, errMixed
	}
	if j.Congestion != "" {
		if err := registered(j.Congestion); err != nil {
			return nil, message{}, err
		}
	}
	rate := s.Limit.rate(0, s.param(size.Name))
	if j.Role == roleTCPAccept {
		rate = s.Limit.connections()
	}
	d := s.dialer("tcp")
	conn, err := d.DialContext(ctx, "tcp", s.Target.String())
	if err != nil {
		return nil, message{}, fmt.Errorf("control connection: %w", s.silent(s.Target, err))
	}
	var proven proof
	if s.Key != nil {
		if proven, err = prove(conn, s.Key); err != nil {
			conn.Close()
			return nil, message{}, fmt.Errorf("control connection: %w", err)
		}
	}
	c := &client{control: newControl(conn), inbox: make(chan message), dead: make(chan struct{}), pace: allowance{rate: rate}}
	c.release = context.AfterFunc(ctx, func() {
		c.stop.Store(true)
		c.Close()
	})
	go c.listen()
	ready, err := c.ask(message{Type: msgHello, Version: Version, Job: &j}, msgReady, controlTimeout)
	if err != nil {
		c.close()
		return nil, message{}, err
	}
	if s.Key != nil {
		ready.Token = proven.token()
	}
	return c, ready, nil
}

// silent says what it may mean that nobody answers a TCP port. Where there is a key, a server is known to be there.
func (s Spec) silent(at netip.AddrPort, err error) error {
	var t net.Error
	if s.Key != nil && errors.As(err, &t) && t.Timeout() {
		return fmt.Errorf("TCP port %d of %s does not answer, where a server listens: is the port let in there, and on the way to it? (%w)", at.Port(), at.Addr(), err)
	}
	return fmt.Errorf("%w: is there a server?", err)
}

// errMixed is why test mixed is not for real hosts: its server tells the client further addresses, of which only one has been proven.
var errMixed = errors.New("test mixed is the lab's alone: it sends to addresses that the path to one of them proves nothing about")

// listen reads until the connection ends.
func (c *client) listen() {
	defer close(c.dead)
	defer c.stop.Store(true)
	for {
		m, err := c.read()
		if err == nil && m.Type == msgError {
			err = fmt.Errorf("the server refused: %s", m.Error)
		}
		// Reset: it hung up with something of ours unread.
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			err = errors.New("the server ended the control connection: did it stop?")
		}
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.inbox <- m:
		case <-time.After(controlTimeout):
			c.err = fmt.Errorf("the server sent %q unasked", m.Type)
			return
		}
	}
}

// ask sends m and waits for an answer of the wanted type.
func (c *client) ask(m message, want string, within time.Duration) (message, error) {
	if err := c.write(m); err != nil {
		select {
		case <-c.dead: // says more than "broken pipe"
			return message{}, c.err
		case <-time.After(controlTimeout):
			return message{}, err
		}
	}
	return c.await(want, within)
}

// await waits for a message of the wanted type.
func (c *client) await(want string, within time.Duration) (message, error) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case m := <-c.inbox:
		if m.Type != want {
			return message{}, fmt.Errorf("the server said %q where %q was due", m.Type, want)
		}
		if want == msgCounts && m.Counts == nil {
			return message{}, errors.New("the server sent counts without numbers")
		}
		return m, nil
	case <-c.dead:
		return message{}, c.err
	case <-timer.C:
		return message{}, fmt.Errorf("no %q from the server within %s", want, within)
	}
}

// failed is why the session ended early, or nil.
func (c *client) failed() error {
	select {
	case <-c.dead:
		return c.err
	default:
		return nil
	}
}

// blame finds the reason behind err: a data connection that broke says less than the control connection
// that breaks with it, a moment sooner or later.
func (c *client) blame(err error) error {
	if err == nil {
		return c.failed()
	}
	select {
	case <-c.dead:
		return c.err
	case <-time.After(time.Second):
		return err
	}
}

// finish asks for the totals.
func (c *client) finish() (counts, error) {
	m, err := c.ask(message{Type: msgStop}, msgCounts, controlTimeout)
	if err != nil {
		return counts{}, err
	}
	return *m.Counts, nil
}

func (c *client) close() {
	c.release()
	c.stop.Store(true)
	c.Close()
	// Keep the reader from waiting for someone to take its last message.
	for {
		select {
		case <-c.inbox:
		case <-c.dead:
			return
		}
	}
}

// pattern is what the session's payloads hold.
func (s Spec) pattern(ready message) *pattern {
	p := newPattern(ready.Token)
	p.blind = s.blind()
	return p
}

// blind says whether nothing but headers is verified.
func (s Spec) blind() bool {
	v, has := s.Params[verify.Name]
	return has && v == 0
}

// dataAddr is where the server's data port is.
func dataAddr(s Spec, ready message) netip.AddrPort {
	return netip.AddrPortFrom(s.Target.Addr(), ready.Port)
}
