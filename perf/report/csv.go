package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"weft/perf/result"
)

// CSV writes one line a row of the result, under one of names; samples are separated by blanks. A figure that there is not is empty, a sample
// without an answer the word for it. The last two columns are bytes of the contender's test: compared with what was sent, and other than that.
func CSV(w io.Writer, r *result.Result) error {
	c := csv.NewWriter(w)
	lines := [][]string{{
		"contender", "test", "metric", "unit", "median", "low", "high", "samples", "inner_mtu", "layout",
		"cpu_user", "cpu_system", "cpu_softirq", "seconds_per_gigabyte", "nanoseconds_per_packet", "unanswered",
		"verified", "corrupt",
	}}
	verified := map[[2]string]result.Integrity{}
	for _, i := range r.Integrity {
		verified[[2]string{i.Contender, title(i.Path, i.Test, i.Params)}] = i
	}
	for _, row := range r.Results {
		i := verified[[2]string{row.Contender, title(row.Path, row.Test, row.Params)}]
		samples := strings.Trim(fmt.Sprint(texts(row.Samples)), "[]")
		lines = append(lines, []string{
			row.Contender, title(row.Path, row.Test, row.Params), row.Metric, row.Unit,
			figure(row.Median), figure(row.Low), figure(row.High), samples,
			strconv.Itoa(row.InnerMTU), r.Settings.Layout,
			number(row.CPU.User), number(row.CPU.System), number(row.CPU.SoftIRQ),
			number(row.CPU.SecondsPerGigabyte), number(row.CPU.NanosecondsPerPacket), strconv.Itoa(row.Samples.Unanswered()),
			strconv.FormatUint(i.Verified, 10), strconv.FormatUint(i.Corrupt, 10),
		})
	}
	if err := c.WriteAll(lines); err != nil {
		return fmt.Errorf("report: write CSV: %w", err)
	}
	return nil
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func figure(f result.Figure) string {
	if !f.Known() {
		return ""
	}
	return number(float64(f))
}

func texts(values []float64) []string {
	list := make([]string, len(values))
	for i, v := range values {
		list[i] = unanswered
		if !math.IsNaN(v) {
			list[i] = number(v)
		}
	}
	return list
}
