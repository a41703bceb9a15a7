package report

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"

	"weft/perf/history"
	"weft/perf/result"
)

const (
	// mostPoints is how many points a curve over time has at most; more runs are put together.
	mostPoints = 300
	// mostFailures is how many of what did not work are listed, the newest first.
	mostFailures = 30
)

// overTime are figures that are drawn over time. A rate of round trips says what their latency says.
var overTime = []string{"throughput", "rate", "p50", "p99", "loss", "cpu"}

// past is one figure of one test over all runs.
type past struct {
	title, metric, unit string
	contenders          []string
	points              map[string][]*history.Figure // by contender; one a run, nil where it has none
}

// pastOf puts the figures of all runs together, in the order in which they come first.
func pastOf(runs []history.Entry) []*past {
	var list []*past
	byName := map[string]*past{}
	for i, run := range runs {
		for k := range run.Figures {
			f := &run.Figures[k]
			if !slices.Contains(overTime, f.Metric) || f.Metric == "rate" && f.Unit == "1/s" && f.Test != "tcp-crr" {
				continue
			}
			name := title(f.Path, f.Test, f.Params)
			p := byName[name+"\x00"+f.Metric]
			if p == nil {
				p = &past{title: name, metric: f.Metric, unit: f.Unit, points: map[string][]*history.Figure{}}
				byName[name+"\x00"+f.Metric] = p
				list = append(list, p)
			}
			if p.points[f.Contender] == nil {
				p.contenders = append(p.contenders, f.Contender)
				p.points[f.Contender] = make([]*history.Figure, len(runs))
			}
			if f.Median.Known() {
				p.points[f.Contender][i] = f
			}
		}
	}
	return list
}

// overSections are the sections over time, one a test; order is that of colours and marks.
func overSections(runs []history.Entry, order []string) []section {
	var list []section
	for _, p := range pastOf(runs) {
		i := slices.IndexFunc(list, func(s section) bool { return s.Title == p.title })
		if i < 0 {
			i = len(list)
			list = append(list, section{ID: fmt.Sprintf("over-%d", i), Title: p.title,
				Heads: []string{"contender", "figure", "last", "median", "least", "most", "runs with it", "MTU"}})
		}
		s := &list[i]
		sc := scaleOf(p.unit, p.most())
		s.Pictures = append(s.Pictures, picture{p.metric + ", " + sc.name + "; the band is the interval of a run, or of runs put together",
			p.draw(fmt.Sprintf("%s-%d", s.ID, len(s.Pictures)), sc, runs, order)})
		for _, c := range p.contenders {
			s.Rows = append(s.Rows, p.row(c, sc))
		}
	}
	return list
}

func (p *past) most() (most float64) {
	for _, points := range p.points {
		for _, f := range points {
			if f != nil {
				most = max(most, float64(f.Median))
			}
		}
	}
	return most
}

// row is a line of the table: what a contender's figure was, and what it is.
func (p *past) row(contender string, sc scale) []string {
	points := p.points[contender]
	var values []float64
	var mtus []string
	for _, f := range points {
		if f == nil {
			continue
		}
		values = append(values, float64(f.Median)/sc.by)
		if m := fmt.Sprint(f.InnerMTU); len(mtus) == 0 || mtus[len(mtus)-1] != m {
			mtus = append(mtus, m)
		}
	}
	last := "–"
	if f := points[len(points)-1]; f != nil {
		last = digits(float64(f.Median) / sc.by)
	}
	row := []string{contender, p.metric + ", " + sc.name, last, "–", "–", "–", fmt.Sprintf("%d of %d", len(values), len(points)), "–"}
	if len(values) > 0 {
		const changes = 4 // that are shown
		if n := len(mtus) - changes; n > 0 {
			mtus = append([]string{"…"}, mtus[n:]...)
		}
		row[3], row[4], row[5], row[7] = digits(result.Median(values)), digits(slices.Min(values)), digits(slices.Max(values)), strings.Join(mtus, ", then ")
	}
	return row
}

// draw draws the curves of all contenders over the time of the runs. Where a run has no figure there is a gap.
func (p *past) draw(id string, sc scale, runs []history.Entry, order []string) template.HTML {
	at := func(i int) float64 { return float64(runs[i].At.Unix()) }
	x := axis{from: 46, to: 352, low: at(0), top: at(len(runs) - 1)}
	if x.top <= x.low {
		x.low, x.top = x.low-1800, x.top+1800
	}
	top := 0.0
	each := (len(runs) + mostPoints - 1) / mostPoints // runs that are put together
	var curves []curve
	var said []string
	for _, c := range p.contenders {
		points := p.points[c]
		series := max(slices.Index(order, c), 0)
		var line curve
		end := func() {
			if len(line.points) > 0 {
				curves = append(curves, line)
			}
			line = curve{series: series, name: c}
		}
		end()
		for i := 0; i < len(points); i += each {
			var medians []float64
			low, high := math.Inf(1), math.Inf(-1)
			last := min(i+each, len(points))
			for _, f := range points[i:last] {
				if f != nil {
					medians = append(medians, float64(f.Median)/sc.by)
					low, high = min(low, float64(f.Low)/sc.by), max(high, float64(f.High)/sc.by)
				}
			}
			if len(medians) == 0 {
				end()
				continue
			}
			when := (at(i) + at(last-1)) / 2
			line.points = append(line.points, [2]float64{when, result.Median(medians)})
			line.low, line.high = append(line.low, [2]float64{when, low}), append(line.high, [2]float64{when, high})
			top = max(top, high)
		}
		end()
		said = append(said, c+" last "+p.row(c, sc)[2])
	}
	y := axis{from: 200, to: 20, low: 0, top: max(top*1.05, 1e-9)}
	return plot(newDrawing(id, p.title+": "+p.metric+" over time", strings.Join(said, ", ")+".", 234), x, y, days(x), labels(y.ticks(5), ""), "time, UTC", sc.name, curves)
}

// days are labels of a time axis.
func days(x axis) map[float64]string {
	const ticks = 4
	form := "15:04"
	switch span := x.top - x.low; {
	case span > 4*24*3600:
		form = "Jan 2"
	case span > 20*3600:
		form = "Jan 2 15:04"
	case span < 600:
		form = "15:04:05"
	}
	m := map[float64]string{}
	for i := range ticks + 1 {
		v := x.low + (x.top-x.low)*float64(i)/ticks
		m[v] = time.Unix(int64(v), 0).UTC().Format(form)
	}
	return m
}

// missing lists what did not work, the newest first.
func missing(runs []history.Entry) [][]string {
	var rows [][]string
	for _, run := range slices.Backward(runs) {
		at := run.At.UTC().Format("2006-01-02 15:04:05")
		if run.Error != "" {
			rows = append(rows, []string{at, "all of it", "", run.Error})
		}
		for _, f := range run.Failed {
			rows = append(rows, []string{at, result.On(f.Contender, f.Path), cmp.Or(f.Test, "–"), f.Reason})
		}
		if len(rows) > mostFailures {
			return append(rows[:mostFailures], []string{"…", "", "", "and more before"})
		}
	}
	return rows
}
