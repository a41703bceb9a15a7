package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"

	"weft/perf"
)

// CSV writes one line a row of the result, under one of names; samples are separated by blanks.
func CSV(w io.Writer, r *perf.Result) error {
	c := csv.NewWriter(w)
	lines := [][]string{{
		"contender", "test", "metric", "unit", "median", "low", "high", "samples", "inner_mtu", "layout",
		"cpu_user", "cpu_system", "cpu_softirq", "seconds_per_gigabyte", "nanoseconds_per_packet",
	}}
	for _, row := range r.Results {
		samples := strings.Trim(fmt.Sprint(texts(row.Samples)), "[]")
		lines = append(lines, []string{
			row.Contender, title(row.Test, row.Params), row.Metric, row.Unit,
			number(row.Median), number(row.Low), number(row.High), samples,
			strconv.Itoa(row.InnerMTU), r.Settings.Layout,
			number(row.CPU.User), number(row.CPU.System), number(row.CPU.SoftIRQ),
			number(row.CPU.SecondsPerGigabyte), number(row.CPU.NanosecondsPerPacket),
		})
	}
	if err := c.WriteAll(lines); err != nil {
		return fmt.Errorf("report: write CSV: %w", err)
	}
	return nil
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func texts(values []float64) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = number(v)
	}
	return list
}
