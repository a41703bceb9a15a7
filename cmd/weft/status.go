package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
)

// newStatusCommand is `weft status`.
func newStatusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "How the daemon is",
		Long: `Print how the daemon is: whether the path is programmed, for which nodes, how old its knowledge
of the cluster is, and what is wrong. The exit code is 0 when the daemon answered, ready or not.`,
		Args: cobra.NoArgs,
	}
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := ask(c.Context(), *socket, (*api.Client).Status)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, s, func(w io.Writer) { printStatus(w, s) })
	}
	return c
}

func printStatus(w io.Writer, s api.Status) {
	ready := "yes"
	if !s.Ready {
		ready = "no: " + s.Reason
	}
	row(w, "ready", ready)
	row(w, "node", s.Node)
	row(w, "mode", commas(s.Modes))
	row(w, "network", commas(s.Network))
	row(w, "vni, port", fmt.Sprintf("%d, %d", s.VNI, s.Port))
	row(w, "endpoints", commas(s.Endpoints))
	row(w, "prefixes", commas(s.Prefixes))
	row(w, "devices", commas(s.Devices))
	row(w, "mtu", fmt.Sprintf("%d inside, %d underlay (%s)", s.InnerMTU, s.UnderlayMTU, commas(s.Underlay)))
	row(w, "nodes", fmt.Sprintf("%d from %s, confirmed %s", s.Control.Nodes, s.Control.Kind, age(s.Control.AsOf, s.Now)))
	row(w, "peers by way", pairs(s.PeersByWay))
	row(w, "applied", applied(s))
	row(w, "features", pairs(s.Features))
	row(w, "repairs", s.Repairs)
	row(w, "kernel drops", pairs(s.KernelDrops))
	for _, r := range s.Rings {
		copies := "copies"
		if r.ZeroCopy {
			copies = "zero-copy"
		}
		row(w, "rings", fmt.Sprintf("%s queue %d: %s, %s, %s", r.Device, r.Queue, r.Attach, copies, pairs(r.Counters)))
	}
	row(w, "daemon", fmt.Sprintf("%s, pid %d, up %s", s.Version, s.PID, s.Now.Sub(s.Started).Round(time.Second)))
	for _, p := range s.Problems {
		row(w, "problem", about(p))
	}
	for _, o := range s.Obstacles {
		row(w, "obstacle", o)
	}
}

func applied(s api.Status) string {
	text := age(s.Apply.Applied, s.Now)
	if s.Apply.Error != "" {
		text += fmt.Sprintf(", then failed %d times, next try in %s: %s", s.Apply.Failures,
			max(s.Apply.Retry.Sub(s.Now), 0).Round(100*time.Millisecond), s.Apply.Error)
	}
	return text
}

func about(p api.Problem) string {
	if p.Node == "" {
		return p.Text
	}
	return p.Node + ": " + p.Text
}
