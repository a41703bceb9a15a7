package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
)

// newListCommand is a command that asks the daemon for a list and prints it as a table.
func newListCommand[T any](use, about string, question func(*api.Client, context.Context) ([]T, error), head []any, cells func(T) []any) *cobra.Command {
	c := &cobra.Command{Use: use, Short: about, Args: cobra.NoArgs}
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		list, err := ask(c.Context(), *socket, question)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, list, func(w io.Writer) {
			row(w, head...)
			for _, e := range list {
				row(w, cells(e)...)
			}
		})
	}
	return c
}

// newNodesCommand is `weft nodes`.
func newNodesCommand() *cobra.Command {
	return newListCommand("nodes", "Who is in the cluster", (*api.Client).Nodes,
		[]any{"NODE", "ENDPOINTS", "PREFIXES", "MAC", "WAYS", "FEATURES"},
		func(n api.Node) []any {
			return []any{n.Name + star(n.Self), commas(n.Endpoints), commas(n.Prefixes), n.MAC, commas(n.Ways), commas(n.Features)}
		})
}

// newPeersCommand is `weft peers`.
func newPeersCommand() *cobra.Command {
	c := newListCommand("peers", "How the other nodes are reached, and what passed (userspace modes, and what mode cached carries past the stack)", (*api.Client).Peers,
		[]any{"NODE", "WAY", "ENDPOINT", "BY", "PREFIXES", "VNI", "MTU", "SENT", "RECEIVED", "SEALED"},
		func(p api.Peer) []any {
			endpoint := "-"
			if p.Endpoint.IsValid() {
				endpoint = p.Endpoint.String()
			}
			return []any{p.Node, wayOf(p), endpoint, leaves(p), commas(p.Prefixes), p.VNI, p.MTU, volume(p.TxPackets, p.TxBytes), volume(p.RxPackets, p.RxBytes), sealing(p.Session)}
		})
	why := c.Flags().String("why", "", "one node: by which way it is reached, what else there is, and what was before")
	list := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if *why == "" {
			return list(c, args)
		}
		choice, err := ask(c.Context(), c.Flag("socket").Value.String(), func(a *api.Client, ctx context.Context) (api.Choice, error) { return a.Choice(ctx, *why) })
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), format(c.Flag("output").Value.String()), choice, func(w io.Writer) { printChoice(w, choice, time.Now()) })
	}
	return c
}

// wayOf prints what is on the wire towards a peer.
func wayOf(p api.Peer) string {
	switch {
	case !p.Reached():
		return "none: " + p.Reason
	case p.Reason != "":
		return p.Way + ", for " + p.Reason
	}
	return p.Way
}

// printChoice prints how a peer is reached, what else there is, and what was before.
func printChoice(w io.Writer, c api.Choice, now time.Time) {
	way := c.Way
	if way == "" {
		way = "none"
	}
	if !c.Since.IsZero() {
		way += ", since " + age(c.Since, now)
	}
	row(w, "node", c.Node)
	row(w, "reached by", way)
	takes := commas(c.Takes)
	if len(c.Takes) == 0 {
		takes = "it does not say"
	}
	row(w, "takes", takes)
	for i, is := range c.Candidates {
		text := fmt.Sprintf("%s, mode %s: %s", is.Way, is.Mode, is.State)
		if is.Chosen {
			text = "> " + text
		}
		if !is.Since.IsZero() {
			text += " " + age(is.Since, now)
		}
		if !is.Until.IsZero() {
			text += fmt.Sprintf(", for %v more", max(is.Until.Sub(now), 0).Round(100*time.Millisecond))
		}
		if is.Reason != "" {
			text += ": " + is.Reason
		}
		row(w, fmt.Sprintf("choice %d", i+1), text)
	}
	for _, ch := range slices.Backward(c.Changes) {
		row(w, "changed", fmt.Sprintf("%s, from %s to %s: %s", age(ch.At, now), cmp.Or(ch.From, "none"), cmp.Or(ch.To, "none"), ch.Reason))
	}
}

// newFlowsCommand is `weft flows`.
func newFlowsCommand() *cobra.Command {
	protocols := map[uint8]string{6: "tcp", 17: "udp"}
	return newListCommand("flows", "The pods' flows that eBPF carries past the kernel's stack, and why others are not (mode cached)", (*api.Client).Flows,
		[]any{"PROTO", "POD", "REMOTE", "PEER", "SENT", "RECEIVED", "CACHED"},
		func(f api.Flow) []any {
			cached := "no: " + f.Reason
			if f.Cached {
				cached = age(f.Since, time.Now())
			}
			return []any{protocols[f.Protocol], f.Local, f.Remote, cmp.Or(f.Peer, "-"), volume(f.TxPackets, f.TxBytes), volume(f.RxPackets, f.RxBytes), cached}
		})
}

// leaves prints how packets to a peer leave this node.
func leaves(p api.Peer) string {
	switch {
	case !p.Reached():
		return "-"
	case p.Device == "":
		return "no route"
	case p.Router.IsValid():
		return fmt.Sprintf("%s via %v", p.Device, p.Router)
	}
	return p.Device
}

// sealing prints how it stands with the keys towards a peer.
func sealing(s *api.Session) string {
	if s == nil {
		return "-"
	}
	text := "no: " + s.Reason
	switch {
	case s.Established:
		text = fmt.Sprintf("%s, epoch %d, %s", s.Cipher, s.Epoch, age(s.Since, time.Now()))
		if s.PeerCipher != s.Cipher {
			text += ", peer " + s.PeerCipher
		}
	case s.Plain:
		text = "in clear, by permission: " + s.Reason
	}
	if len(s.Rejected) > 0 {
		text += "; rejected " + pairs(s.Rejected)
	}
	if s.CookiesSent+s.CookiesReceived > 0 {
		text += fmt.Sprintf("; cookies %d sent, %d received", s.CookiesSent, s.CookiesReceived)
	}
	return text
}

// newRoutesCommand is `weft routes`.
func newRoutesCommand() *cobra.Command {
	return newListCommand("routes", "Where the overlay's prefixes lead", (*api.Client).Routes,
		[]any{"PREFIX", "NODE", "ENDPOINT", "MTU"},
		func(r api.Route) []any {
			endpoint := "unreached"
			switch {
			case r.Self:
				endpoint = "here"
			case r.Endpoint.IsValid():
				endpoint = r.Endpoint.String()
			}
			return []any{r.Prefix, r.Node + star(r.Self), endpoint, r.MTU}
		})
}

// newPodsCommand is `weft pods`.
func newPodsCommand() *cobra.Command {
	return newListCommand("pods", "What is attached to this node", (*api.Client).Pods,
		[]any{"NETWORK", "CONTAINER", "POD", "INTERFACE", "ADDRESSES", "MAC", "LINK", "ATTACHED", "REFUSED"},
		func(p api.Pod) []any {
			name, attached := "-", "no"
			if p.PodName != "" {
				name = p.PodNamespace + "/" + p.PodName
			}
			if p.Attached {
				attached = age(p.Since, time.Now())
			}
			return []any{p.Network, p.ContainerID, name, p.IfName, commas(p.IPs), p.MAC, p.HostInterface, attached, pairs(p.Drops)}
		})
}

// star marks this node.
func star(self bool) string {
	if self {
		return " *"
	}
	return ""
}

func volume(packets, bytes uint64) string {
	return fmt.Sprintf("%s packets, %sB", short(float64(packets)), short(float64(bytes)))
}
