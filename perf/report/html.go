package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"slices"
	"strings"

	"weft/perf/history"
	"weft/perf/result"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"mark": func(i int) int { return i % series }}).Parse(pageText))

// view is what the page shows.
type view struct {
	*result.Result
	Legend    []string // contenders in their order, which is that of colours and marks
	Verdict   *verdict
	Tests     []section
	Latencies []section
	Beside    []section
	Loads     []section
	Generator *section
	Losses    []section
	Mixes     []section
	Over      []section
	Missing   [][]string // of past runs
	Runs      int
	Since     string
	Costs     []section
	Stages    []section
	Notes     []string
	Integrity []string // what is corrupt, or that nothing is
	Corrupt   bool
	Balances  int    // accounts of packets
	Good      int    // of those, without anything unexplained
	Between   string // what intervals are
	Baseline  string
	Command   string
	Few       bool // too few samples for an interval
}

// section is one figure with its table.
type section struct {
	ID, Title string
	Pictures  []picture
	Heads     []string
	Rows      [][]string
	Notes     []string
	Legend    []string // what the numbers and patterns in stacked bars are
}

type picture struct {
	Caption string
	SVG     template.HTML
}

// HTML writes one page that needs nothing but itself: no network, no script. Everything that comes from the result is
// escaped. With past runs, the result's own the last of them, it shows how figures changed, too.
func HTML(w io.Writer, r *result.Result, past ...history.Entry) error {
	groups := groups(r.Results)
	v := &view{Result: r, Verdict: judge(groups), Notes: notes(r), Baseline: baseline, Command: shell(r.Command), Between: "95 % rank interval of the median"}
	v.Integrity, v.Corrupt = integrity(r)
	for _, row := range r.Results {
		if !slices.Contains(v.Legend, row.Contender) {
			v.Legend = append(v.Legend, row.Contender)
		}
		if len(row.Samples) < result.Fewest {
			v.Between, v.Few = "smallest to largest sample", true
		}
	}
	for _, b := range r.Conservation {
		v.Balances++
		if b.OK {
			v.Good++
		}
	}
	for i, g := range groups {
		v.Tests = append(v.Tests, testSection(i, g, v.Legend))
		v.Costs = append(v.Costs, costSection(i, g))
	}
	for i, d := range gather(r.Details, func(d result.Detail) bool { return len(d.Latency) > 0 && d.Test != openLoop }) {
		s := latencySection(i, d, groups, v.Legend)
		if d[0].Test == loaded {
			v.Beside = append(v.Beside, s)
		} else {
			v.Latencies = append(v.Latencies, s)
		}
	}
	for i, l := range loads(groups) {
		v.Loads = append(v.Loads, loadSection(i, l, v.Legend))
	}
	if len(r.Generator) > 0 {
		v.Generator = generatorSection(r.Generator, groups)
	}
	for i, d := range gather(r.Details, func(d result.Detail) bool { return len(d.Trials) > 0 }) {
		v.Losses = append(v.Losses, lossSection(i, d, v.Legend))
	}
	for i, d := range gather(r.Details, func(d result.Detail) bool { return len(d.Shapes) > 0 }) {
		v.Mixes = append(v.Mixes, mixSection(i, d))
	}
	for i, d := range gather(r.Details, func(d result.Detail) bool { return len(d.Stages) > 0 }) {
		if s := stageSection(i, d); len(s.Pictures) > 0 {
			v.Stages = append(v.Stages, s)
		}
	}
	if len(past) > 0 {
		for _, run := range past {
			for _, f := range run.Figures {
				if !slices.Contains(v.Legend, f.Contender) {
					v.Legend = append(v.Legend, f.Contender)
				}
			}
		}
		v.Over, v.Missing = overSections(past, v.Legend), missing(past)
		v.Runs, v.Since = len(past), past[0].At.UTC().Format("2006-01-02 15:04")
	}
	if err := page.Execute(w, v); err != nil {
		return fmt.Errorf("report: write the page: %w", err)
	}
	return nil
}

// gather puts the details of one test together.
func gather(details []result.Detail, has func(result.Detail) bool) [][]result.Detail {
	var list [][]result.Detail
	for _, d := range details {
		if !has(d) {
			continue
		}
		i := slices.IndexFunc(list, func(l []result.Detail) bool {
			return title(l[0].Path, l[0].Test, l[0].Params) == title(d.Path, d.Test, d.Params)
		})
		if i < 0 {
			i, list = len(list), append(list, nil)
		}
		list[i] = append(list[i], d)
	}
	return list
}

func testSection(i int, g *group, order []string) section {
	s := section{ID: fmt.Sprintf("test-%d", i), Title: g.title}
	metric := g.metrics[0]
	scale := g.scale(metric)
	s.Pictures = []picture{{metric + " in " + scale.name + ": bar = median, whisker = interval, dots = samples", bars(s.ID, g, order)}}
	s.Heads = []string{"contender", metric + ", " + scale.name, "interval", "× " + baseline, "interval"}
	for _, m := range g.metrics[1:] {
		s.Heads = append(s.Heads, m+", "+g.scale(m).name)
	}
	s.Heads = append(s.Heads, "samples, "+scale.name)
	for _, c := range g.contenders {
		r := g.main(c)
		row := []string{c, median(r, scale.by), between(r.Low.In(scale.by), r.High.In(scale.by))}
		if why := lacking(r); why != "" {
			s.Notes = append(s.Notes, c+": "+why+".")
		}
		if ratio, ok := ratioOf(r.Samples, g.main(baseline).Samples); ok && c != baseline {
			row = append(row, digits(ratio.median), between(ratio.low, ratio.high))
			if ratio.same() {
				s.Notes = append(s.Notes, c+": no difference from "+baseline+".")
			}
		} else {
			row = append(row, "–", "–")
		}
		for _, m := range g.metrics[1:] {
			row = append(row, median(g.rows[[2]string{c, m}], g.scale(m).by))
		}
		var samples []string
		for _, v := range r.Samples {
			if math.IsNaN(v) {
				samples = append(samples, unanswered)
				continue
			}
			samples = append(samples, digits(v/scale.by))
		}
		s.Rows = append(s.Rows, append(row, strings.Join(samples, " ")))
		if lower, upper, is := Bimodal(r.Samples); is {
			s.Notes = append(s.Notes, fmt.Sprintf("%s is bimodal: its samples lie around %s and around %s %s; the median is of neither.",
				c, digits(lower/scale.by), digits(upper/scale.by), scale.name))
		}
	}
	return s
}

// kinds are what the kernel divides processor time into.
var kinds = []string{"user", "system", "softirq"}

func costSection(i int, g *group) section {
	unit, by := "ns a packet", 1.0
	if g.main(g.contenders[0]).CPU.SecondsPerGigabyte > 0 {
		unit = "s a gigabyte"
	}
	s := section{ID: fmt.Sprintf("cpu-%d", i), Title: g.title, Legend: kinds}
	s.Heads = []string{"contender", unit, "cores busy", "user", "system", "softirq"}
	var byKind, byProcess []stack
	var processes []string
	for _, c := range g.contenders {
		for name := range g.main(c).CPU.Processes {
			if !slices.Contains(processes, name) {
				processes = append(processes, name)
			}
		}
	}
	slices.Sort(processes)
	for _, c := range g.contenders {
		cpu := g.main(c).CPU
		cost, total := costOf(cpu)*by, cpu.User+cpu.System+cpu.SoftIRQ
		share := func(cores float64) float64 { // of the cost
			if total == 0 {
				return 0
			}
			return cost * cores / total
		}
		byKind = append(byKind, stack{c, digits(cost) + " " + unit,
			[]part{{"user", share(cpu.User)}, {"system", share(cpu.System)}, {"softirq", share(cpu.SoftIRQ)}}})
		p, sum := stack{name: c}, 0.0
		row := []string{c, digits(cost), cores(total), cores(cpu.User), cores(cpu.System), cores(cpu.SoftIRQ)}
		for _, name := range processes {
			used, has := cpu.Processes[name]
			text := "–"
			if has {
				text = cores(used)
				p.parts = append(p.parts, part{name, share(used)})
				sum += share(used)
			}
			row = append(row, text)
		}
		p.total = digits(sum) + " " + unit
		byProcess = append(byProcess, p)
		s.Rows = append(s.Rows, row)
	}
	s.Heads = append(s.Heads, processes...)
	s.Legend = append(append([]string{}, kinds...), processes...)
	s.Pictures = []picture{
		{"by kind, " + unit, stacks(s.ID+"-kind", g.title+": processor time by kind, "+unit, s.Legend, byKind)},
		{"by process, " + unit, stacks(s.ID+"-process", g.title+": processor time by process, "+unit, s.Legend, byProcess)},
	}
	return s
}

func latencySection(i int, details []result.Detail, groups []*group, order []string) section {
	s := section{ID: fmt.Sprintf("latency-%d", i), Title: title(details[0].Path, details[0].Test, details[0].Params)}
	cdf, tail := latency(s.ID, s.Title, order, details)
	s.Pictures = []picture{
		{"How many round trips took at most so long: further left is faster", cdf},
		{"From the middle to the tail: lower is faster; the band is the interval over the rounds", tail},
	}
	quantiles := []string{"p50", "p90", "p99", "p999"}
	s.Heads = []string{"contender"}
	for _, q := range quantiles {
		s.Heads = append(s.Heads, strings.Replace(q, "p999", "p99.9", 1)+", µs", "interval")
	}
	for _, g := range groups {
		if g.title != s.Title {
			continue
		}
		for _, c := range g.contenders {
			row := []string{c}
			for _, q := range quantiles {
				r := g.rows[[2]string{c, q}]
				row = append(row, median(r, 1), between(r.Low.In(1), r.High.In(1)))
			}
			s.Rows = append(s.Rows, row)
		}
	}
	return s
}

func lossSection(i int, details []result.Detail, order []string) section {
	s := section{ID: fmt.Sprintf("loss-%d", i), Title: title(details[0].Path, details[0].Test, details[0].Params)}
	s.Pictures = []picture{{"Every trial of every search; filled: long trials, which decide; dashed: the 0.1 % that still counts as none",
		loss(s.ID, s.Title, order, details)}}
	s.Heads = []string{"contender", "trials", "least loss", "most loss", "most offered, packet/s", "delivered then, packet/s"}
	for _, d := range details {
		least, most, best := 1.0, 0.0, d.Trials[0]
		for _, t := range d.Trials {
			least, most = min(least, t.Loss), max(most, t.Loss)
			if t.Offered > best.Offered {
				best = t
			}
		}
		s.Rows = append(s.Rows, []string{d.Contender, fmt.Sprint(len(d.Trials)), fmt.Sprintf("%.2f %%", least*100), fmt.Sprintf("%.1f %%", most*100),
			fmt.Sprintf("%.0f", best.Offered), fmt.Sprintf("%.0f", best.Rate)})
		for _, n := range d.Notes {
			s.Notes = append(s.Notes, d.Contender+": "+n)
		}
	}
	return s
}

// mixSection is what each shape of traffic came to.
func mixSection(i int, details []result.Detail) section {
	s := section{ID: fmt.Sprintf("mixed-%d", i), Title: title(details[0].Path, details[0].Test, details[0].Params)}
	s.Heads = []string{"contender", "traffic", "IP", "bytes verified", "sent", "lost", "unit", "bytes corrupt"}
	for _, d := range details {
		for _, f := range d.Shapes {
			s.Rows = append(s.Rows, []string{d.Contender, f.Name, fmt.Sprint(f.Family), fmt.Sprint(f.Verified), fmt.Sprint(f.Sent), fmt.Sprint(f.Lost), f.Unit, fmt.Sprint(f.Corrupt)})
		}
	}
	return s
}

// carries is the share of the busiest lane's packets below which a lane had nothing of the test.
const carries = .01

func stageSection(i int, details []result.Detail) section {
	s := section{ID: fmt.Sprintf("stages-%d", i), Title: title(details[0].Path, details[0].Test, details[0].Params)}
	s.Heads = []string{"contender", "node", "lane", "stage", "packets", "ns a packet", "interval"}
	var list []stack
	for _, d := range details {
		var most uint64
		for _, g := range d.Stages {
			most = max(most, g.Packets)
		}
		lanes := map[string]int{}
		for _, g := range d.Stages {
			if float64(g.Packets) < carries*float64(most) || g.NanosecondsPerPacket == 0 {
				continue
			}
			if !slices.Contains(s.Legend, g.Stage) {
				s.Legend = append(s.Legend, g.Stage)
			}
			name := d.Contender + ", node " + g.Node + ", " + g.Lane
			at, known := lanes[name]
			if !known {
				at = len(list)
				lanes[name], list = at, append(list, stack{name: name})
			}
			list[at].parts = append(list[at].parts, part{g.Stage, g.NanosecondsPerPacket})
			spread := "–"
			if len(g.Samples) > 0 {
				spread = between(result.Interval(g.Samples))
			}
			s.Rows = append(s.Rows, []string{d.Contender, g.Node, g.Lane, g.Stage, fmt.Sprint(g.Packets), digits(g.NanosecondsPerPacket), spread})
		}
	}
	if len(list) == 0 {
		return s
	}
	for k := range list {
		sum := 0.0
		for _, p := range list[k].parts {
			sum += p.value
		}
		list[k].total = digits(sum) + " ns"
	}
	s.Pictures = []picture{{"ns a packet in each lane, waiting left out", stacks(s.ID, s.Title+": time of a packet by stage, ns", s.Legend, list)}}
	return s
}

// shell writes a command so that a shell reads it back.
func shell(command []string) string {
	words := make([]string, len(command))
	for i, w := range command {
		if w == "" || strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,:=+/@%") != "" {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}
