package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
)

// newBGPCommand is `weft bgp`.
func newBGPCommand() *cobra.Command {
	c := &cobra.Command{Use: "bgp", Short: "Prefixes exchanged by BGP, with other nodes and with routers"}
	c.AddCommand(
		newBGPPart("status", "What this node is to others, and how much it has learnt", func(b api.BGP) any { return b }, printBGP),
		newBGPPart("peers", "With whom prefixes are exchanged, and why not", func(b api.BGP) any { return b.Sessions }, printBGPPeers),
		newBGPPart("routes", "What was learnt, and what was told and is not believed", func(b api.BGP) any { return bgpRoutes{b.Routes, b.Refused, b.RefusedMore} }, printBGPRoutes),
	)
	return c
}

// bgpRoutes is what `weft bgp routes -o json` prints.
type bgpRoutes struct {
	Routes  any `json:"routes"`
	Refused any `json:"refused"`
	More    int `json:"refused_more"`
}

// newBGPPart is a command that shows a part of what there is.
func newBGPPart(use, about string, part func(api.BGP) any, rows func(io.Writer, api.BGP)) *cobra.Command {
	c := &cobra.Command{Use: use, Short: about, Args: cobra.NoArgs}
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		b, err := ask(c.Context(), *socket, (*api.Client).BGP)
		if err != nil {
			return err
		}
		if !b.Enabled && *form == asText {
			fmt.Fprintln(c.OutOrStdout(), "BGP is off on this node: set bgp.as in weft.yaml")
			return nil
		}
		return show(c.OutOrStdout(), *form, part(b), func(w io.Writer) { rows(w, b) })
	}
	return c
}

func printBGP(w io.Writer, b api.BGP) {
	up := 0
	for _, s := range b.Sessions {
		if s.Up {
			up++
		}
	}
	mesh := "with every other node"
	if !b.Mesh {
		mesh = "no"
	}
	settled := "yes"
	if !b.Settled {
		settled = "no: not all peers have told of all yet, and what the kernel had is kept"
	}
	row(w, "as", b.AS)
	row(w, "mesh", mesh)
	row(w, "tells of", commas(b.Prefixes))
	row(w, "sessions", fmt.Sprintf("%d, %d up", len(b.Sessions), up))
	row(w, "settled", settled)
	row(w, "routes", len(b.Routes))
	row(w, "refused", len(b.Refused)+b.RefusedMore)
}

func printBGPPeers(w io.Writer, b api.BGP) {
	row(w, "PEER", "NODE", "AS", "PREFIXES", "UP", "RECEIVED", "SENT", "RESTARTS", "ROUTER-ID")
	for _, s := range b.Sessions {
		up, restarts := "no, "+s.Phase+": "+s.Reason, "no"
		if s.Up {
			up = age(s.Since, time.Now())
		}
		if s.Restarts {
			restarts = "graceful"
		}
		row(w, s.Peer, cmp.Or(s.Node, "-"), s.AS, commas(s.Families), up, s.Received, s.Advertised, restarts, cmp.Or(s.RouterID, "-"))
	}
}

func printBGPRoutes(w io.Writer, b api.BGP) {
	row(w, "PREFIX", "NODE", "VIA", "FROM", "AS-PATH", "STATE")
	for _, r := range b.Routes {
		state := "in use"
		switch {
		case r.Stale && len(r.From) == 0:
			state = "kept from before the restart"
		case r.Stale:
			state = "kept while the peer restarts"
		}
		row(w, r.Prefix, cmp.Or(r.Node, "-"), commas(r.Via), commas(r.From), cmp.Or(r.Path, "-"), state)
	}
	for _, r := range b.Refused {
		row(w, r.Prefix, "-", r.Via, r.From, "-", "refused: "+r.Reason)
	}
	if b.RefusedMore > 0 {
		row(w, "-", "-", "-", "-", "-", fmt.Sprintf("refused: %d more", b.RefusedMore))
	}
}
