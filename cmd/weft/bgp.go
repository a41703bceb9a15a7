package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
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

// newDrainCommand is `weft drain`.
func newDrainCommand() *cobra.Command {
	c := &cobra.Command{Use: "drain", Short: "Withdraw this node's prefixes from BGP before maintenance", Args: cobra.NoArgs,
		Long: `Withdraw this node's prefixes at all its BGP peers, so that nothing is sent to it by these routes any more, and wait until the peers
have been told. It carries what still comes, sessions stay, and so does what it has learnt. It lasts, also over restarts, until
--undo. Who announces graceful restart waits for a daemon that ends; for a node that is drained there is nothing to wait with.`}
	undo := c.Flags().Bool("undo", false, "tell of the prefixes again")
	wait := c.Flags().Duration("wait", 10*time.Second, "how long to wait for the peers to be told")
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		b, err := ask(c.Context(), *socket, (*api.Client).BGP)
		if err == nil && !b.Enabled {
			err = unsupportedError{api.ErrNoBGP}
		}
		if err != nil {
			return err
		}
		client := api.NewClient(*socket)
		defer client.Close()
		if err := client.Drain(c.Context(), !*undo); err != nil {
			return err
		}
		for end := time.Now().Add(*wait); ; time.Sleep(50 * time.Millisecond) {
			if b, err = client.BGP(c.Context()); err != nil {
				return err
			}
			waited := untold(b, !*undo)
			if len(waited) == 0 {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("not all peers have been told within %v: %s: see `weft bgp peers`, and try again", *wait, commas(waited))
			}
		}
		return show(c.OutOrStdout(), *form, b, func(w io.Writer) {
			if *undo {
				fmt.Fprintln(w, "told of again:", commas(b.Prefixes))
			} else {
				fmt.Fprintln(w, "withdrawn from all peers; `weft drain --undo` when the maintenance is over")
			}
		})
	}
	return c
}

// untold are the peers with a session that do not know yet that a node is drained, or is not any more.
func untold(b api.BGP, drained bool) (peers []string) {
	for _, s := range b.Sessions {
		tells := slices.ContainsFunc(b.Prefixes, func(p netip.Prefix) bool {
			return slices.Contains(s.Families, map[bool]string{false: "ipv4", true: "ipv6"}[p.Addr().Is6()])
		})
		if s.Up && (b.Drained != drained || (s.Advertised > 0) != tells) {
			peers = append(peers, s.Peer.String())
		}
	}
	if b.Drained != drained && len(peers) == 0 {
		peers = append(peers, "this node's own daemon")
	}
	return peers
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
	tells := commas(b.Prefixes)
	if b.Drained {
		tells = "nothing: it is drained, see `weft drain --undo`"
	}
	row(w, "tells of", tells)
	row(w, "sessions", fmt.Sprintf("%d, %d up", len(b.Sessions), up))
	row(w, "settled", settled)
	row(w, "routes", len(b.Routes))
	row(w, "refused", len(b.Refused)+b.RefusedMore)
}

func printBGPPeers(w io.Writer, b api.BGP) {
	row(w, "PEER", "NODE", "AS", "PREFIXES", "UP", "RECEIVED", "SENT", "BFD", "RESTARTS", "ROUTER-ID")
	for _, s := range b.Sessions {
		up, restarts := "no, "+s.Phase+": "+s.Reason, "no"
		if s.Up {
			up = age(s.Since, time.Now())
		}
		if s.Restarts {
			restarts = "graceful"
		}
		row(w, s.Peer, cmp.Or(s.Node, "-"), s.AS, commas(s.Families), up, s.Received, s.Advertised, cmp.Or(s.BFD, "-"), restarts, cmp.Or(s.RouterID, "-"))
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
