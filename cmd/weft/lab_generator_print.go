package main

import (
	"fmt"
	"io"

	"weft/perf/probe"
)

// printBench prints a result for people.
func printBench(w io.Writer, r probe.Result) {
	for _, m := range r.Metrics {
		row(w, m.Name, benchValue(m))
	}
	if r.Unanswered != "" {
		row(w, "unanswered", r.Unanswered)
	}
	if r.Congestion != "" {
		row(w, "congestion", r.Congestion)
	}
	if r.Generated > 0 {
		row(w, "packets", fmt.Sprintf("%d generated, %d delivered, %d duplicates, %d reordered",
			r.Generated, r.Delivered, r.Duplicates, r.Reordered))
		row(w, "dropped", pairs(r.KernelDrops))
		row(w, "refused", pairs(r.SendErrors))
	}
	for _, f := range r.Shapes {
		row(w, fmt.Sprintf("IPv%d %s", f.Family, f.Name), fmt.Sprintf("%d bytes verified, %d corrupt; of %d %ss sent %d lost", f.Verified, f.Corrupt, f.Sent, f.Unit, f.Lost))
	}
	row(w, "verified", fmt.Sprintf("%d bytes, %d corrupt", r.Verified, r.Corrupt))
	for _, damage := range r.Damage {
		row(w, "corrupt", damage)
	}
	for _, note := range r.Notes {
		row(w, "note", note)
	}
}

// benchValue prints a figure in the unit people use for it.
func benchValue(m probe.Metric) string {
	switch m.Unit {
	case "bit/s":
		return fmt.Sprintf("%.3f Gbit/s", m.Value/1e9)
	case "packet/s", "1/s":
		return fmt.Sprintf("%.0f %s", m.Value, m.Unit)
	case "ratio":
		return fmt.Sprintf("%.4f %%", m.Value*100)
	case "us":
		return fmt.Sprintf("%.1f µs", m.Value)
	}
	return fmt.Sprintf("%g %s", m.Value, m.Unit)
}
