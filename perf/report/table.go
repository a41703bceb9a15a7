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

	"weft/perf/probe"
	"weft/perf/result"
)

// baseline is the contender the others are compared with.
const baseline = result.Baseline

// Table writes one table a test, and below them what did not run and what does not add up.
func Table(w io.Writer, r *result.Result) error {
	var b strings.Builder
	if len(r.Hosts) == 1 {
		fmt.Fprintf(&b, "%s\n%s; ", machine(r.Hosts[0]), software(r.Hosts[0]))
	} else {
		for _, h := range r.Hosts {
			fmt.Fprintf(&b, "%s: %s; %s\n", h.Name, machine(h), software(h))
		}
	}
	b.WriteString(circumstances(r) + "\n")
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

func machine(h result.Host) string {
	return fmt.Sprintf("%s, %d cores, Linux %s, mitigations: %s", h.CPU, h.Cores, h.Kernel, h.Mitigations)
}

func software(h result.Host) string {
	return fmt.Sprintf("weft %s, %s, TCP %s", h.Weft, h.Go, h.TCPCongestion)
}

// circumstances are the run's settings. MTU and layout are the lab's.
func circumstances(r *result.Result) string {
	s := r.Settings
	text := fmt.Sprintf("%d nodes", s.Nodes)
	if s.Layout != "" {
		text = "layout " + s.Layout + ", " + text
	}
	if s.MTU != 0 {
		text += fmt.Sprintf(", underlay MTU %d", s.MTU)
	}
	if s.Load != "" {
		text += ", " + s.Load
	}
	return text + fmt.Sprintf(", %d × %g s after %d warm-up", s.Repeat, s.Duration, s.Warmup)
}

// group is the rows of one test with the same parameters.
type group struct {
	test       string
	title      string
	metrics    []string // in their order; the first is the main one
	contenders []string
	rows       map[[2]string]result.Row // by contender and metric
}

func groups(rows []result.Row) []*group {
	var list []*group
	for _, r := range rows {
		title := title(r.Path, r.Test, r.Params)
		i := slices.IndexFunc(list, func(g *group) bool { return g.title == title })
		if i < 0 {
			i = len(list)
			list = append(list, &group{test: r.Test, title: title, rows: map[[2]string]result.Row{}})
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

// title names a test with all its parameters, and the path it was on: udp-rate, size 64, family 4; a → b.
func title(path, test string, params probe.Params) string {
	var keys []string
	for k := range params {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		test += fmt.Sprintf(", %s %v", k, params[k])
	}
	if path != "" {
		test += "; " + path
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
func mixTable(d result.Detail) string {
	t := plainTable(d.Contender + ", " + title(d.Path, d.Test, d.Params))
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

func (g *group) main(contender string) result.Row { return g.rows[[2]string{contender, g.metrics[0]}] }

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
func (g *group) ratio(r result.Row) []any {
	ratio, ok := ratioOf(r.Samples, g.main(baseline).Samples)
	if !ok {
		return []any{"", ""}
	}
	return []any{digits(ratio.median), between(ratio.low, ratio.high)}
}

// between names the columns of intervals.
func (g *group) between() string {
	if len(g.main(g.contenders[0]).Samples) < result.Fewest {
		return "min–max"
	}
	return "95 %"
}

func cores(v float64) string { return fmt.Sprintf("%.2f", v) }

// integrity says whether what was delivered is what was sent: what is corrupt, or one line that nothing is.
func integrity(r *result.Result) (lines []string, corrupt bool) {
	if r.Integrity == nil {
		return []string{"verified: nothing; the result is of before payloads were verified"}, false
	}
	var blind []string
	for _, i := range r.Integrity {
		if v, has := i.Params["verify"]; has && v == 0 {
			blind = append(blind, i.Contender+", "+title(i.Path, i.Test, i.Params))
		}
		if i.OK {
			continue
		}
		lines = append(lines, fmt.Sprintf("corrupt: %s, %s: %d of %d bytes arrived other than they were sent", i.Contender, title(i.Path, i.Test, i.Params), i.Corrupt, i.Verified))
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
func notes(r *result.Result) []string {
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
			lines = append(lines, fmt.Sprintf("unanswered: %s, %s: %s", row.Contender, title(row.Path, row.Test, row.Params), why))
		}
	}
	if most := background(r); most >= busyMachine {
		lines = append(lines, fmt.Sprintf("busy: before rounds the machine was doing %.1f cores' worth of something else: run it again when it is idle", most))
	}
	for _, b := range r.Conservation {
		if b.OK {
			continue
		}
		what := b.Contender + ", " + title(b.Path, b.Test, b.Params)
		if b.PathBalance != nil {
			lines = append(lines, fmt.Sprintf("unaccounted: %s: %d of %d packets", what, b.Unaccounted, b.Generated))
		} else {
			lines = append(lines, fmt.Sprintf("does not add up: %s, node %s, lane %s: received %d, sent %d, dropped %v", what, b.Node, b.Lane, b.Received, b.Sent, b.Drops))
		}
	}
	return lines
}

// mains are the rows of the tests' main figures: a test has an answer or not, with all its figures.
func mains(rows []result.Row) []result.Row {
	var list []result.Row
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
func background(r *result.Result) (most float64) {
	for _, row := range r.Results {
		most = max(most, row.CPU.Background)
	}
	return most
}
