package main

import (
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"weft/perf/model"
	"weft/perf/result"
)

// newLabPredictCommand is `weft lab predict`: what a mix of packet sizes would cost.
func newLabPredictCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "predict RESULT.json",
		Short: "Say what a mix of packet sizes would cost in each mode",
		Long: `Fit each contender's udp-rate at several sizes, nanoseconds for a packet and for each byte of it,
and say what a mix of sizes costs by that. "held out" is how far the model is off, at worst, at a
size it was fitted without: trust no prediction where that is large. Where the result has the mix itself
(udp-rate:imix=1, or the size), it is shown beside the prediction; that of a size is then made without it.

A mix is imix (sizes 40, 576 and 1500 as 7:4:1), one size, or a YAML file:
packets: [{size: 64, weight: 7}, {size: 1400, weight: 1}]`,
		Example: `  weft lab run --scenario small-packets --json r.json && weft lab predict r.json --mix imix --rate 100000`,
		Args:    cobra.ExactArgs(1), ValidArgsFunction: resultFiles,
	}
	mixName := cmd.Flags().String("mix", "imix", "imix, a packet size in bytes, or a YAML file")
	rate := cmd.Flags().Float64("rate", 0, "packets per second: also say what cores that takes; 0 = no rate in particular")
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !(*rate >= 0 && *rate <= 1e12) {
			return usageError{fmt.Errorf("rate %v: give packets per second, 0 to 1e12", *rate)}
		}
		r, err := result.Read(args[0])
		if err != nil {
			return usageError{err}
		}
		mix, err := model.LoadMix(*mixName)
		if err != nil {
			return usageError{err}
		}
		models, leftOut, err := model.Fit(r)
		for _, why := range leftOut {
			fmt.Fprintln(cmd.ErrOrStderr(), "left out:", why)
		}
		if err != nil {
			return usageError{fmt.Errorf("%s: %w", args[0], err)}
		}
		var all []model.Prediction
		for _, m := range models {
			p, err := m.Predict(mix, *rate)
			if err != nil {
				return fmt.Errorf("%s: %w", m.Contender, err)
			}
			all = append(all, p)
		}
		return show(cmd.OutOrStdout(), *form, all, func(w io.Writer) { printPredictions(w, all) })
	}
	return cmd
}

func printPredictions(w io.Writer, all []model.Prediction) {
	row(w, "contender", "family", "ns/packet +", "95 %", "ns/byte", "95 %", "held out", "mean size", "mix: ns/packet", "95 %", "packet/s", "measured", "error", "cores", "carried")
	for _, p := range all {
		cores, carries, worst := "-", "-", "-"
		if p.Cores != nil {
			cores = fmt.Sprintf("%.2f", p.Cores.Value)
		}
		if p.Carries != nil {
			carries = map[bool]string{true: "yes", false: "no"}[*p.Carries]
		}
		measured, off := optional("%.0f", p.Measured), "-"
		if p.Error != nil {
			off = fmt.Sprintf("%+.0f %%", 100**p.Error)
		}
		if v := p.Time.Worst(); !math.IsNaN(v) {
			worst = fmt.Sprintf("%.0f %%", 100*v)
		}
		row(w, p.Contender, p.Family, fmt.Sprintf("%.0f", p.Time.Packet.Value), fmt.Sprintf("%.0f to %.0f", p.Time.Packet.Low, p.Time.Packet.High),
			fmt.Sprintf("%.2f", p.Time.Byte.Value), fmt.Sprintf("%.2f to %.2f", p.Time.Byte.Low, p.Time.Byte.High), worst, fmt.Sprintf("%.0f", p.MeanSize),
			fmt.Sprintf("%.0f", p.Nanos.Value), fmt.Sprintf("%.0f to %.0f", p.Nanos.Low, p.Nanos.High), short(p.Highest.Value), measured, off, cores, carries)
	}
	for _, p := range all {
		if p.Unanswered > 0 {
			fmt.Fprintf(w, "%s, family %d: %d samples have no answer and are left out\n", p.Contender, p.Family, p.Unanswered)
		}
	}
}
