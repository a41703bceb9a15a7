package main

import (
	"context"
	"fmt"
	"io"
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
		[]any{"NODE", "ENDPOINTS", "PREFIXES", "MAC", "FEATURES"},
		func(n api.Node) []any {
			return []any{n.Name + star(n.Self), commas(n.Endpoints), commas(n.Prefixes), n.MAC, commas(n.Features)}
		})
}

// newPeersCommand is `weft peers`.
func newPeersCommand() *cobra.Command {
	return newListCommand("peers", "How the other nodes are reached, and what passed (userspace modes)", (*api.Client).Peers,
		[]any{"NODE", "ENDPOINT", "BY", "PREFIXES", "VNI", "MTU", "SENT", "RECEIVED", "SEALED"},
		func(p api.Peer) []any {
			return []any{p.Node, p.Endpoint, leaves(p), commas(p.Prefixes), p.VNI, p.MTU, volume(p.TxPackets, p.TxBytes), volume(p.RxPackets, p.RxBytes), sealing(p.Session)}
		})
}

// leaves prints how packets to a peer leave this node.
func leaves(p api.Peer) string {
	switch {
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
