package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"weft/internal/backoff"
	"weft/perf/site"
)

// Client is a connection to an agent. One goroutine uses it at a time. Once it has failed it is of no more use.
type Client struct {
	line *line
	err  error
}

// again is how often an agent that hangs up unseen is tried again, until patience ends.
const again = 50 * time.Millisecond

// Dial connects to an agent and says who is there. host is the name in its certificate, where it has one.
func Dial(ctx context.Context, to netip.AddrPort, host string, id *Identity) (*Client, *Welcome, error) {
	t, err := knock(ctx, to, host, id)
	for until := time.Now().Add(patience); errors.Is(err, errUnseen) && time.Now().Before(until) && backoff.Sleep(ctx, again); {
		t, err = knock(ctx, to, host, id)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the agent at %s: %w", to, err)
	}
	client := &Client{line: newLine(t)}
	r, err := client.ask(ctx, request{Op: opHello, Version: Version}, patience)
	if err != nil {
		client.Close()
		return nil, nil, fmt.Errorf("the agent at %s: %w", to, err)
	}
	if r.Welcome == nil {
		client.Close()
		return nil, nil, fmt.Errorf("the agent at %s says nothing of its host", to)
	}
	return client, r.Welcome, nil
}

// knock makes one connection, and both ends prove themselves over it.
func knock(ctx context.Context, to netip.AddrPort, host string, id *Identity) (*tls.Conn, error) {
	d := net.Dialer{Timeout: patience, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 4}}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return nil, fmt.Errorf("%w: does `weft bench serve` run there, and does the network let TCP port %d in?", err, to.Port())
	}
	t, err := id.greet(ctx, c, host)
	if err != nil {
		c.Close()
	}
	return t, err
}

// Close ends the connection, and by that all that the agent has done for it.
func (c *Client) Close() error { return c.line.Close() }

// Err is why the connection is of no more use; nil = it is.
func (c *Client) Err() error { return c.err }

// ask sends a request and waits for its reply. When ctx ends first, so does the connection: the agent then ends what it does.
func (c *Client) ask(ctx context.Context, q request, within time.Duration) (r reply, err error) {
	if c.err != nil {
		return r, c.err
	}
	stop := context.AfterFunc(ctx, func() { c.line.Close() })
	defer stop()
	lost := func(err error) (reply, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("the agent hung up: did it end?")
		}
		c.err = fmt.Errorf("the connection to the agent is lost: %w", err)
		c.line.Close()
		return reply{}, c.err
	}
	if err := c.line.write(q); err != nil {
		return lost(err)
	}
	if err := c.line.SetReadDeadline(time.Now().Add(within)); err != nil {
		return lost(err)
	}
	data, err := c.line.read()
	if err == nil {
		err = decode(data, &r)
	}
	if err != nil {
		return lost(err)
	}
	switch {
	case r.Unsupported:
		return r, &site.UnsupportedError{Reason: r.Error}
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// short is how long an agent may take for what it does at once.
const short = 15 * time.Second

// Serve starts the server of a setup's generators at an address of the agent's host.
func (c *Client) Serve(ctx context.Context, setup string, at netip.Addr) (*Target, error) {
	r, err := c.ask(ctx, request{Op: opServe, Setup: setup, Serve: &ServeChoice{at}}, starting+short)
	if err == nil && r.Served == nil {
		err = errors.New("the agent does not say where it serves")
	}
	return r.Served, err
}

// Stop ends that server.
func (c *Client) Stop(ctx context.Context, setup string) error {
	_, err := c.ask(ctx, request{Op: opStop, Setup: setup}, short)
	return err
}

// Path has the agent prove a server, and say what the path to it carries, bytes.
func (c *Client) Path(ctx context.Context, setup string, t Target) (mtu int, err error) {
	r, err := c.ask(ctx, request{Op: opPath, Setup: setup, Target: &t}, slack+short)
	if err == nil && r.Path == nil {
		err = errors.New("the agent says nothing of the path")
	}
	if err != nil {
		return 0, err
	}
	return r.Path.MTU, nil
}

// Generate has the agent run one test.
func (c *Client) Generate(ctx context.Context, setup string, t Target, o TestOrder) (*Generated, error) {
	r, err := c.ask(ctx, request{Op: opGenerate, Setup: setup, Target: &t, Generate: &o}, o.Duration+slack+short)
	if err == nil && r.Generated == nil {
		err = errors.New("the agent has no result")
	}
	return r.Generated, err
}

// Count reads what is around a setup's generators at the agent's end.
func (c *Client) Count(ctx context.Context, setup string) (*Counted, error) {
	r, err := c.ask(ctx, request{Op: opCount, Setup: setup}, short)
	if err == nil && r.Counted == nil {
		err = errors.New("the agent has no counters")
	}
	return r.Counted, err
}

// Open brings a contender up at the agent's end.
func (c *Client) Open(ctx context.Context, setup string, o OpenOrder) (*OpenedSetup, error) {
	r, err := c.ask(ctx, request{Op: opOpen, Setup: setup, Open: &o}, settle+short)
	if err == nil && r.Opened == nil {
		err = errors.New("the agent says nothing of the contender")
	}
	return r.Opened, err
}

// Shut takes a contender down at the agent's end.
func (c *Client) Shut(ctx context.Context, setup string) error {
	_, err := c.ask(ctx, request{Op: opShut, Setup: setup}, short)
	return err
}

// settle bounds how long a contender may take to come up.
const settle = time.Minute
