package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
)

// newStagesCommand is `weft stages`: what each lane does with its time.
func newStagesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "stages",
		Short: "What each lane of a userspace mode does with its time and its packets",
		Long: `Print, for every lane, how many packets it carries, how busy it is and how many packets it finds
at a time; and for every stage what a packet costs there and which were dropped. Without
--interval the figures are since the lane began; with it, they are those of the interval. Modes
in which the kernel forwards have no lanes.`,
		Example: "  weft stages --interval 1s\n  weft stages --interval 2s --watch",
		Args:    cobra.NoArgs,
	}
	socket, form := socketFlag(c), formatFlag(c)
	interval := c.Flags().Duration("interval", 0, "measure for this long instead of since the lane began")
	watch := c.Flags().Bool("watch", false, "again and again, every --interval (1s unless given), until interrupted")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *interval < 0 {
			return usageError{fmt.Errorf("--interval %s: write a time above 0, 1s say", *interval)}
		}
		if *watch && *interval == 0 {
			*interval = time.Second
		}
		client := api.NewClient(*socket)
		defer client.Close()
		return watchStages(c.Context(), client, *interval, *watch, func(lanes []api.Lane) error {
			if *form == asJSON {
				return writeJSON(c.OutOrStdout(), lanes)
			}
			return printLanes(&plainWriter{to: c.OutOrStdout()}, lanes)
		})
	}
	return c
}

// watchStages shows lanes: since they began, or over intervals.
func watchStages(ctx context.Context, client *api.Client, interval time.Duration, again bool, show func([]api.Lane) error) error {
	before, err := client.Lanes(ctx)
	if err != nil {
		return err
	}
	if interval == 0 {
		return show(before)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
		after, err := client.Lanes(ctx)
		if err != nil {
			return err
		}
		if err := show(api.Since(before, after)); err != nil || !again {
			return err
		}
		before = after
	}
}

func printLanes(w io.Writer, lanes []api.Lane) error {
	if len(lanes) == 0 {
		fmt.Fprintln(w, "no lanes: the kernel forwards in this mode, or the path is not up yet (see `weft status`)")
	}
	for i, l := range lanes {
		if i > 0 {
			fmt.Fprintln(w)
		}
		seconds := time.Duration(l.Age).Seconds()
		fmt.Fprintf(w, "lane %s   %.1f s   %s packet/s   busy %.0f %%   %.1f packets/batch\n",
			l.Name, seconds, short(ratio(float64(l.Received), seconds)), 100*l.Busy(), ratio(float64(l.Received), float64(l.Turns)))
		if l.Copied > 0 {
			fmt.Fprintf(w, "%s copies made to flood frames to all peers\n", short(float64(l.Copied)))
		}
		t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
		row(t, "stage", "calls", "packets", "packets/call", "ns/packet", "drops")
		for _, s := range l.Stages {
			cost := "-"
			if s.Timed > 0 {
				cost = fmt.Sprintf("%.0f", ratio(float64(s.Nanos), float64(s.Timed)))
			}
			row(t, s.Name, short(float64(s.Calls)), short(float64(s.Packets)), fmt.Sprintf("%.1f", ratio(float64(s.Packets), float64(s.Calls))), cost, pairs(s.Drops))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
