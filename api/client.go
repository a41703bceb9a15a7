package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// ErrUnreachable says that no daemon answered.
var ErrUnreachable = errors.New("daemon not reachable")

// maxAnswer bounds an answer: 5,000 nodes are under 2 MB.
const maxAnswer = 64 << 20

// Client asks a daemon. It is safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client of the daemon behind the socket; nothing is dialled yet.
func NewClient(socket string) *Client {
	reach := func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) }
	return &Client{socket: socket, http: http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: reach}}}
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "status", &s)
}

// Nodes asks who is in the cluster.
func (c *Client) Nodes(ctx context.Context) (n []Node, err error) { return n, c.get(ctx, "nodes", &n) }

// Peers asks how the other nodes are reached.
func (c *Client) Peers(ctx context.Context) (p []Peer, err error) { return p, c.get(ctx, "peers", &p) }

// Choice asks how one of them is reached, and why so; CodeNotFound where nobody knows it.
func (c *Client) Choice(ctx context.Context, node string) (w Choice, err error) {
	return w, c.get(ctx, "peers/"+url.PathEscape(node), &w)
}

// Routes asks where the overlay's prefixes lead.
func (c *Client) Routes(ctx context.Context) (r []Route, err error) {
	return r, c.get(ctx, "routes", &r)
}

// Lanes asks what the userspace lanes have done.
func (c *Client) Lanes(ctx context.Context) (l []Lane, err error) {
	return l, c.get(ctx, "stages", &l)
}

// Flows asks which flows of pods are cached.
func (c *Client) Flows(ctx context.Context) (f []Flow, err error) { return f, c.get(ctx, "flows", &f) }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Announce has the daemon know of an attachment whose addresses another IPAM is about to give out: it is listed until it is
// detached or collected, so that they are given back whatever happens.
func (c *Client) Announce(ctx context.Context, r AnnounceRequest) error {
	return c.post(ctx, "pods/announce", r, &struct{}{})
}

// Attach attaches a pod. Asking again for what is attached returns the same result.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (a AttachResult, err error) {
	return a, c.post(ctx, "pods/attach", r, &a)
}

// Detach takes a pod's interface and gives its addresses back.
func (c *Client) Detach(ctx context.Context, r DetachRequest) error {
	return c.post(ctx, "pods/detach", r, &struct{}{})
}

// Check fails with CodeNotFound or CodeMismatch where an attachment is not as expected.
func (c *Client) Check(ctx context.Context, r CheckRequest) error {
	return c.post(ctx, "pods/check", r, &struct{}{})
}

// GC takes away the attachments of a network that are not named as valid.
func (c *Client) GC(ctx context.Context, r GCRequest) error {
	return c.post(ctx, "pods/gc", r, &struct{}{})
}

// Pods asks what is attached.
func (c *Client) Pods(ctx context.Context) (p []Pod, err error) { return p, c.get(ctx, "pods", &p) }

// PodStatus asks whether pods can be attached.
func (c *Client) PodStatus(ctx context.Context) (s PodStatus, err error) {
	return s, c.get(ctx, "pods/status", &s)
}

func (c *Client) get(ctx context.Context, what string, to any) error {
	return c.ask(ctx, http.MethodGet, what, nil, to)
}

func (c *Client) post(ctx context.Context, what string, body, to any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("api: %s: %w", what, err)
	}
	return c.ask(ctx, http.MethodPost, what, bytes.NewReader(data), to)
}

func (c *Client) ask(ctx context.Context, method, what string, question io.Reader, to any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://weft/v1/"+what, question)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return silence(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp, body)
	}
	if err := json.Unmarshal(body, to); err != nil {
		return fmt.Errorf("daemon: %s: %w: do the daemon and this command have the same version?", what, err)
	}
	return nil
}

// silence is the error of a request that nobody answered.
func silence(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var op *net.OpError
	if errors.As(err, &op) { // says the path and the reason, without the URL nobody typed
		err = op
	}
	return fmt.Errorf("%w: %w: is `weft daemon` running, and is this its socket?", ErrUnreachable, err)
}

// refusal is the error that an answer is.
func refusal(resp *http.Response, body []byte) error {
	var f failure
	if json.Unmarshal(body, &f) != nil || f.Error == "" {
		f.Error = resp.Status
	}
	if f.Code != "" {
		return &Error{Code: f.Code, Text: f.Error}
	}
	return fmt.Errorf("daemon: %s", f.Error)
}
