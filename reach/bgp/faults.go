package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// faults remembers of each peer what the library last said went wrong. It says so in its log alone, of which this is the handler.
type faults struct {
	mu   sync.Mutex
	last map[netip.Addr]string
}

// peerLog is the handler of what concerns one peer.
type peerLog struct {
	*faults
	peer netip.Addr
}

// Enabled implements slog.Handler.
func (f *faults) Enabled(context.Context, slog.Level) bool { return false }

// Handle implements slog.Handler: what concerns no peer is none's fault.
func (f *faults) Handle(context.Context, slog.Record) error { return nil }

// WithGroup implements slog.Handler.
func (f *faults) WithGroup(string) slog.Handler { return f }

// WithAttrs implements slog.Handler.
func (f *faults) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if at, err := netip.ParseAddr(a.Value.String()); a.Key == "Key" && err == nil {
			return &peerLog{f, at}
		}
	}
	return f
}

// Enabled implements slog.Handler.
func (p *peerLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (p *peerLog) Handle(_ context.Context, r slog.Record) error {
	said := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { said[a.Key] = a.Value.String(); return true })
	text := ""
	switch r.Message {
	case "failed to connect":
		text = said["Error"]
	case "sent notification":
		text = "this node ended it: " + notification(said)
	case "received notification":
		text = "the peer ended it: " + notification(said)
	case "outgoing connection IO error":
		text = "the peer takes the connection and closes it, as one does that does not know this node"
	case "hold timer expired":
		text = "the peer was not heard for the hold time"
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last == nil {
		p.last = map[netip.Addr]string{}
	}
	p.last[p.peer] = text
	return nil
}

// WithAttrs implements slog.Handler.
func (p *peerLog) WithAttrs([]slog.Attr) slog.Handler { return p }

// WithGroup implements slog.Handler.
func (p *peerLog) WithGroup(string) slog.Handler { return p }

// notification is what a NOTIFICATION message said.
func notification(said map[string]string) string {
	code, _ := strconv.Atoi(said["Code"]) // the library's own numbers
	sub, _ := strconv.Atoi(said["Subcode"])
	text := wire.NewNotificationErrorCode(uint8(code), uint8(sub)).String()
	if more := said["Communicated-Reason"]; more != "" {
		text += " (" + more + ")"
	}
	if code == wire.BGP_ERROR_OPEN_MESSAGE_ERROR && sub == wire.BGP_ERROR_SUB_BAD_PEER_AS {
		text += ": the autonomous systems differ from what is configured: compare bgp.as, the peer's as, and what the peer has for this node"
	}
	return text
}

// forget forgets a peer.
func (f *faults) forget(at netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.last, at)
}

// why says why a session is not up, and what to do.
func (f *faults) why(s *session, ended string, tooMany bool) string {
	f.mu.Lock()
	last := f.last[s.remote]
	f.mu.Unlock()
	switch {
	case tooMany && s.node != "":
		return fmt.Sprintf("it told of more than %d prefixes, and has fewer: see `weft bgp status` there, and restart the daemon here", s.most)
	case tooMany:
		return fmt.Sprintf("it told of more than %d prefixes: mend what it announces, or raise max_prefixes, and restart the daemon", s.most)
	case strings.Contains(last, "refused"):
		return fmt.Sprintf("nobody listens on TCP port %d there: %s: start BGP there (a weft node: bgp.as)", Port, last)
	case strings.Contains(last, "timeout"):
		return fmt.Sprintf("no answer from TCP port %d there: let the port pass its firewall, and compare the passwords: packets with a wrong one are dropped without a word (%s)", Port, last)
	case last != "":
		return last
	case ended != "":
		return ended
	case s.passive:
		return "the peer has not connected: it is the one of the two that does, for its address is the lower one"
	}
	return "it is being connected to"
}
