// Package report shows results of the lab: a page to look at, tables for people, CSV for programs. JSON is the Result
// itself.
//
// The page's drawings are small SVG made here and not by a plotting library: gonum/plot's vgsvg writes colours, fonts and
// sizes into every element, so a style sheet cannot turn them for the dark, for print or for a narrow screen, and it has
// no title, description or role for a screen reader.
package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"weft/perf"
	"weft/perf/contender"
	"weft/perf/probe"
)

// baseline is the contender the others are compared with.
const baseline = contender.Bare

// Table writes one table a test, and below them what did not run and what does not add up.
func Table(w io.Writer, r *perf.Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, Linux %s, mitigations: %s\n", r.Host.CPU, r.Host.Cores, r.Host.Kernel, r.Host.Mitigations)
	fmt.Fprintf(&b, "weft %s, %s, TCP %s; layout %s, %d nodes, underlay MTU %d, %d × %g s after %d warm-up\n",
		r.Host.Weft, r.Host.Go, r.Host.TCPCongestion, r.Settings.Layout, r.Settings.Nodes, r.Settings.MTU,
		r.Settings.Repeat, r.Settings.Duration, r.Settings.Warmup)
	for _, group := range groups(r.Results) {
		b.WriteString("\n" + group.table() + "\n")
	}
	for _, d := range r.Details {
		if len(d.Shapes) > 0 {
			b.WriteString("\n" + mixTable(d) + "\n")
		}
	}
	verified, _ := integrity(r)
	for _, line := range append(verified, notes(r)...) {
		b.WriteString("\n" + line)
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// group is the rows of one test with the same parameters.
type group struct {
	test       string
	title      string
	metrics    []string // in their order; the first is the main one
	contenders []string
	rows       map[[2]string]perf.Row // by contender and metric
}

func groups(rows []perf.Row) []*group {
	var list []*group
	for _, r := range rows {
		title := title(r.Test, r.Params)
		i := slices.IndexFunc(list, func(g *group) bool { return g.title == title })
		if i < 0 {
			i = len(list)
			list = append(list, &group{test: r.Test, title: title, rows: map[[2]string]perf.Row{}})
		}
		g := list[i]
		if !slices.Contains(g.metrics, r.Metric) {
			g.metrics = append(g.metrics, r.Metric)
		}
		if !slices.Contains(g.contenders, r.Contender) {
			g.contenders = append(g.contenders, r.Contender)
		}
		g.rows[[2]string{r.Contender, r.Metric}] = r
	}
	return list
}

// title names a test with all its parameters: udp-rate, size 64, family 4.
func title(test string, params probe.Params) string {
	var keys []string
	for k := range params {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		test += fmt.Sprintf(", %s %v", k, params[k])
	}
	return test
}

func (g *group) table() string {
	t := plainTable(g.title)

	head := table.Row{"contender"}
	scales := make([]scale, len(g.metrics))
	for i, m := range g.metrics {
		scales[i] = g.scale(m)
		if i == 0 {
			head = append(head, m+" "+scales[i].name, g.between(), "× "+baseline, g.between())
		} else {
			head = append(head, m+" "+scales[i].name)
		}
	}
	costName := "ns/packet"
	if g.main(g.contenders[0]).CPU.SecondsPerGigabyte > 0 {
		costName = "CPU s/GB"
	}
	t.AppendHeader(append(head, "MTU", "cores", "user+sys+softirq", costName))

	for _, c := range g.contenders {
		row := table.Row{c}
		for i, m := range g.metrics {
			r := g.rows[[2]string{c, m}]
			by := scales[i].by
			row = append(row, median(r, by))
			if i == 0 {
				row = append(row, between(r.Low.In(by), r.High.In(by)))
				row = append(row, g.ratio(r)...)
			}
		}
		cpu := g.main(c).CPU
		cost := cpu.NanosecondsPerPacket
		if cpu.SecondsPerGigabyte > 0 {
			cost = cpu.SecondsPerGigabyte
		}
		t.AppendRow(append(row, g.main(c).InnerMTU, cores(cpu.User+cpu.System+cpu.SoftIRQ),
			cores(cpu.User)+"+"+cores(cpu.System)+"+"+cores(cpu.SoftIRQ), digits(cost)))
	}
	var config []table.ColumnConfig
	for n := range len(head) + 4 {
		if n > 0 {
			config = append(config, table.ColumnConfig{Number: n + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	t.SetColumnConfigs(config)
	return trimLines(t.Render())
}

// mixTable shows what each shape of traffic came to.
func mixTable(d perf.Detail) string {
	t := plainTable(d.Contender + ", " + title(d.Test, d.Params))
	t.AppendHeader(table.Row{"traffic", "IP", "bytes verified", "sent", "lost", "unit", "bytes corrupt"})
	for _, f := range d.Shapes {
		t.AppendRow(table.Row{f.Name, f.Family, f.Verified, f.Sent, f.Lost, f.Unit, f.Corrupt})
	}
	return trimLines(t.Render())
}

// plainTable is a table in the style of all.
func plainTable(title string) table.Writer {
	t := table.NewWriter()
	t.SetTitle(title)
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Title.Align = text.AlignLeft
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.Style().Box.PaddingLeft, t.Style().Box.PaddingRight = "", "  "
	return t
}

// trimLines takes the blanks off the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

func (g *group) main(contender string) perf.Row { return g.rows[[2]string{contender, g.metrics[0]}] }

func (g *group) scale(metric string) scale {
	var largest float64
	unit := ""
	for _, c := range g.contenders {
		r := g.rows[[2]string{c, metric}]
		unit = r.Unit
		if r.Median.Known() {
			largest = max(largest, float64(r.Median))
		}
	}
	return scaleOf(unit, largest)
}

// ratio is the two cells that compare a row with the baseline.
func (g *group) ratio(r perf.Row) []any {
	ratio, ok := ratioOf(r.Samples, g.main(baseline).Samples)
	if !ok {
		return []any{"", ""}
	}
	return []any{digits(ratio.median), between(ratio.low, ratio.high)}
}

// between names the columns of intervals.
func (g *group) between() string {
	if len(g.main(g.contenders[0]).Samples) < perf.Fewest {
		return "min–max"
	}
	return "95 %"
}

func cores(v float64) string { return fmt.Sprintf("%.2f", v) }

// integrity says whether what was delivered is what was sent: what is corrupt, or one line that nothing is.
func integrity(r *perf.Result) (lines []string, corrupt bool) {
	if r.Integrity == nil {
		return []string{"verified: nothing; the result is of before payloads were verified"}, false
	}
	var blind []string
	for _, i := range r.Integrity {
		if v, has := i.Params["verify"]; has && v == 0 {
			blind = append(blind, i.Contender+", "+title(i.Test, i.Params))
		}
		if i.OK {
			continue
		}
		lines = append(lines, fmt.Sprintf("corrupt: %s, %s: %d of %d bytes arrived other than they were sent", i.Contender, title(i.Test, i.Params), i.Corrupt, i.Verified))
		for _, d := range i.Damage {
			lines = append(lines, "corrupt: "+d)
		}
	}
	if len(lines) > 0 {
		return lines, true
	}
	lines = []string{fmt.Sprintf("verified: %d bytes, 0 corrupt", r.Verified().Verified)}
	if len(blind) > 0 {
		lines = append(lines, "not verified, as asked: "+strings.Join(blind, "; "))
	}
	return lines, false
}

// notes lists what did not run and what does not add up.
func notes(r *perf.Result) []string {
	var lines []string
	for _, u := range r.Unsupported {
		lines = append(lines, fmt.Sprintf("unsupported: %s: %s", u.Contender, u.Reason))
	}
	for _, f := range r.Failed {
		what := f.Contender
		if f.Test != "" {
			what += ", " + f.Test
		}
		lines = append(lines, fmt.Sprintf("failed: %s: %s", what, f.Reason))
	}
	for _, row := range mains(r.Results) {
		if why := lacking(row); why != "" {
			lines = append(lines, fmt.Sprintf("unanswered: %s, %s: %s", row.Contender, title(row.Test, row.Params), why))
		}
	}
	if most := background(r); most >= busyMachine {
		lines = append(lines, fmt.Sprintf("busy: before rounds the machine was doing %.1f cores' worth of something else: run it again when it is idle", most))
	}
	for _, b := range r.Conservation {
		if b.OK {
			continue
		}
		what := b.Contender + ", " + title(b.Test, b.Params)
		if b.PathBalance != nil {
			lines = append(lines, fmt.Sprintf("unaccounted: %s: %d of %d packets", what, b.Unaccounted, b.Generated))
		} else {
			lines = append(lines, fmt.Sprintf("does not add up: %s, node %s, lane %s: received %d, sent %d, dropped %v", what, b.Node, b.Lane, b.Received, b.Sent, b.Drops))
		}
	}
	return lines
}

// mains are the rows of the tests' main figures: a test has an answer or not, with all its figures.
func mains(rows []perf.Row) []perf.Row {
	var list []perf.Row
	for _, g := range groups(rows) {
		for _, c := range g.contenders {
			list = append(list, g.main(c))
		}
	}
	return list
}

// busyMachine is how many cores may be busy with something else before figures should not be trusted.
const busyMachine = 0.1

// background is the most that the machine did besides, of all tests.
func background(r *perf.Result) (most float64) {
	for _, row := range r.Results {
		most = max(most, row.CPU.Background)
	}
	return most
}
