// Package doctor looks at a machine with weft's eyes: what the kernel can do, what the network's
// settings will do to the overlay, what a running daemon says of itself, whether its peers answer. It changes nothing. Each
// finding that is not good comes with its remedy.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weft/api"
	"weft/catalog/mode"
	"weft/control"
	"weft/internal/config"
)

// Level says how bad a finding is.
type Level string

// Levels, from harmless to fatal.
const (
	OK      Level = "ok"
	Note    Level = "note"    // good to know
	Wrong   Level = "wrong"   // something is broken and can be mended
	Missing Level = "missing" // this machine cannot do what the configuration asks for
)

// Finding is the answer to one question.
type Finding struct {
	Name   string `json:"name"`
	Level  Level  `json:"level"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"` // "" where there is nothing to do
}

// Subject is what is known before looking.
type Subject struct {
	Config *config.Config // nil = there is none that can be read
	Self   control.Node   // this node and the others, as far as the configuration's source tells without a daemon
	Nodes  []control.Node
	Modes  []mode.Mode // of this build
	Client *api.Client // of the daemon that may be running
	Visit  bool        // ask its peers, too
}

// Examine asks every question.
func Examine(ctx context.Context, p Subject) []Finding {
	status, err := p.Client.Status(ctx)
	var known []api.Peer
	var nodes []api.Node
	var unknown error
	if err == nil {
		known, unknown = p.Client.Peers(ctx)
		nodes, _ = p.Client.Nodes(ctx) // without them a peer has one address
	}
	list := []Finding{privileges()}
	list = append(list, Abilities(p)...)
	list = append(list, underlay(p, status, known)...)
	list = append(list, port(p, status, err == nil))
	list = append(list, detours(p)...)
	list = append(list, forwarding(p)...)
	list = append(list, ipv6(p), socketBuffers())
	list = append(list, daemon(status, err)...)
	if err != nil {
		return list
	}
	if pods, err := p.Client.Pods(ctx); err == nil && len(pods) == 0 {
		list = append(list, Finding{"forward path", OK, "not judged: nothing is sent as a pod's packets are while this node has no pods", ""})
	}
	if status.Cipher != config.CipherNone {
		list = append(list, sealing(status, known, unknown)...)
	}
	list = append(list, narrow(status, known)...)
	if p.Visit && status.Ready {
		list = append(list, peers(ctx, status, known, nodes, unknown)...)
	}
	return list
}

// dropRemedy says what to do about packets that the kernel dropped under a name.
func dropRemedy(name string, port uint16) string {
	device, what, scoped := strings.Cut(name, " ")
	switch {
	case name == "handshake-overflow":
		return fmt.Sprintf("somebody floods UDP port %d with what is no traffic: traffic goes first; let only the nodes reach that port", port)
	case what == "neighbour-table-full":
		return "the kernel has no room for more neighbours: raise net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3"
	case name == "conntrack insert-failed":
		return "two flows got the same addresses and ports at the same moment, and the later one's first packet is lost: masquerade with fully-random where rules of others do it (iptables --random-fully)"
	case device == "conntrack":
		return "connection tracking is full: raise net.netfilter.nf_conntrack_max, or take from it what need not be tracked (notrack)"
	case name == "neighbour-unresolved" || device == "machine":
		return "hosts on a link of this machine did not answer ARP or neighbour discovery, and packets to them are lost, the overlay's and others': see `ip neigh show nud failed` and `ip neigh show nud incomplete`"
	case scoped && strings.HasPrefix(what, "rx-"):
		return fmt.Sprintf("packets that came in are lost at %[1]s: see `ip -s -s link show %[1]s`", device)
	case scoped:
		return fmt.Sprintf("%[1]s did not take all that this node sent, the overlay's packets and others': see `tc -s qdisc show dev %[1]s` and `ip -s -s link show %[1]s`", device)
	}
	return "the daemon was slower than the traffic: see `weft stages --interval 1s`"
}

// rings says how an AF_XDP queue is attached, and what went wrong at its rings.
func rings(r api.Ring) Finding {
	f := Finding{"rings", OK, fmt.Sprintf("%s queue %d: %s XDP", r.Device, r.Queue, r.Attach), ""}
	if r.ZeroCopy {
		f.Found += ", zero-copy"
	}
	for _, bad := range []string{"rx-invalid-descs", "tx-invalid-descs"} {
		if n := r.Counters[bad]; n > 0 {
			f.Level, f.Found, f.Remedy = Wrong, fmt.Sprintf("%s, %s %d", f.Found, bad, n), "the kernel refused what weft put into a ring: report it, with `weft status -o json`"
		}
	}
	return f
}

// daemon repeats what a running daemon complains of.
func daemon(s api.Status, err error) []Finding {
	if errors.Is(err, api.ErrUnreachable) {
		return []Finding{{"daemon", Note, err.Error(), "start it: weft daemon"}}
	}
	if err != nil {
		return []Finding{{"daemon", Wrong, err.Error(), "use a daemon and a command of one version"}}
	}
	list := []Finding{{"daemon", OK, fmt.Sprintf("ready, mode %s, %d nodes", s.Mode, s.Control.Nodes), ""}}
	if !s.Ready {
		list[0] = Finding{"daemon", Wrong, "not ready: " + s.Reason, "mend the reason; the daemon tries again by itself"}
	}
	for _, p := range s.Problems {
		list = append(list, Finding{"cluster", Wrong, strings.TrimSpace(p.Node + " " + p.Text), "correct the cluster's data; it is read again by itself"})
	}
	for _, o := range s.Obstacles {
		list = append(list, Finding{"forward path", Wrong, o, "mend that; it is found out again by itself"})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Features)) {
		if state := s.Features[name]; state != "on" {
			list = append(list, Finding{"feature " + name, Note, state, ""})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.KernelDrops)) {
		if n := s.KernelDrops[name]; n > 0 {
			list = append(list, Finding{"kernel drops", Note, fmt.Sprintf("%s %d since the daemon began", name, n), dropRemedy(name, s.Port)})
		}
	}
	for _, r := range s.Rings {
		list = append(list, rings(r))
	}
	return list
}
