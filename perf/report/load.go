package report

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"

	"weft/perf/result"
)

// openLoop is the test of round trips at an offered load.
const openLoop = "udp-open-rr"

// loaded is the test of round trips beside a stream.
const loaded = "loaded-rr"

// load is one offered load, and its rows.
type load struct {
	rate float64 // requests a second
	*group
}

// loads puts the offered loads of the same packets together, in their order.
func loads(all []*group) [][]load {
	var keys []string
	byKey := map[string][]load{}
	for _, g := range all {
		if g.test != openLoop {
			continue
		}
		params := maps.Clone(g.main(g.contenders[0]).Params)
		l := load{params["rate"], g}
		delete(params, "rate")
		key := title(g.main(g.contenders[0]).Path, openLoop, params)
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
		byKey[key] = append(byKey[key], l)
	}
	var list [][]load
	for _, k := range keys {
		slices.SortFunc(byKey[k], func(a, b load) int { return cmp.Compare(a.rate, b.rate) })
		list = append(list, byKey[k])
	}
	return list
}

// loadSection shows how long round trips take at each offered load.
func loadSection(i int, list []load, order []string) section {
	params := maps.Clone(list[0].main(list[0].contenders[0]).Params)
	delete(params, "rate")
	s := section{ID: fmt.Sprintf("load-%d", i), Title: title(list[0].main(list[0].contenders[0]).Path, openLoop, params)}
	for _, q := range []struct{ metric, name string }{{"p50", "median"}, {"p99", "99th percentile"}} {
		s.Pictures = append(s.Pictures, picture{q.name + " against what was offered; the band is the interval over the rounds: lower is faster",
			loadCurves(s.ID+"-"+q.metric, s.Title+": "+q.name, q.metric, list, order)})
	}
	s.Heads = []string{"offered, 1/s", "contender", "answered, 1/s", "lost"}
	quantiles := []string{"p50", "p90", "p99", "p999"}
	for _, q := range quantiles {
		s.Heads = append(s.Heads, strings.Replace(q, "p999", "p99.9", 1)+", µs", "interval")
	}
	for _, l := range list {
		for _, c := range l.contenders {
			row := []string{short(l.rate), c, fmt.Sprintf("%.0f", float64(l.rows[[2]string{c, "rate"}].Median)), fmt.Sprintf("%.2f %%", 100*float64(l.rows[[2]string{c, "loss"}].Median))}
			for _, q := range quantiles {
				r := l.rows[[2]string{c, q}]
				row = append(row, median(r, 1), between(r.Low.In(1), r.High.In(1)))
				if lower, upper, is := Bimodal(r.Samples); is && q == "p50" {
					s.Notes = append(s.Notes, fmt.Sprintf("%s at %s/s is bimodal: around %s and around %s µs.", c, short(l.rate), digits(lower), digits(upper)))
				}
			}
			s.Rows = append(s.Rows, row)
		}
	}
	return s
}

// loadCurves draws one quantile of every contender over the loads.
func loadCurves(id, title, metric string, list []load, order []string) template.HTML {
	curves := map[string]*curve{}
	low, top := math.Inf(1), 0.0
	var said []string
	for _, l := range list {
		for _, c := range l.contenders {
			r := l.rows[[2]string{c, metric}]
			if !(r.Median > 0) {
				continue
			}
			middle, from, to := r.Median.In(1), max(r.Low.In(1), 1e-3), r.High.In(1)
			if curves[c] == nil {
				curves[c] = &curve{series: slices.Index(order, c), name: c}
			}
			k := curves[c]
			k.points = append(k.points, [2]float64{l.rate, middle})
			k.low, k.high = append(k.low, [2]float64{l.rate, from}), append(k.high, [2]float64{l.rate, to})
			low, top = min(low, from), max(top, to)
			said = append(said, fmt.Sprintf("%s at %s/s %s µs", c, short(l.rate), digits(middle)))
		}
	}
	first, last := list[0].rate, list[len(list)-1].rate
	x := axis{from: 46, to: 352, low: first, top: max(last, first*1.01), log: true}
	y := axis{from: 200, to: 20, low: low * .95, top: top * 1.05, log: true}
	xTicks := map[float64]string{}
	for _, l := range list {
		xTicks[l.rate] = short(l.rate)
	}
	var all []curve
	for _, c := range order {
		if k := curves[c]; k != nil {
			all = append(all, *k)
		}
	}
	return plot(newDrawing(id, title, strings.Join(said, ", ")+".", 234), x, y, xTicks, labels(y.ticks(6), ""), "offered, requests a second (logarithmic)", "µs (logarithmic)", all)
}

// near is the share of what the generators do by themselves from which they may be what is measured.
const near = .9

// generatorSection says what the generators do without pods and without overlay, beside what the best contender reached.
func generatorSection(all []result.Ceiling, groups []*group) *section {
	s := &section{ID: "ceiling", Title: "The generators by themselves", Heads: []string{"test", "figure", "by themselves", "interval", "best contender", "of it"}}
	for _, c := range all {
		name := title("", c.Test, c.Params)
		i := slices.IndexFunc(groups, func(g *group) bool { return g.title == name })
		sc := scaleOf(c.Unit, c.Median.In(1))
		row := []string{name, c.Metric + ", " + sc.name, digits(c.Median.In(sc.by)), between(c.Low.In(sc.by), c.High.In(sc.by)), "–", "–"}
		if n := c.Samples.Unanswered(); n > 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%s: %d of %d samples have no answer and are in no figure.", name, n, len(c.Samples)))
		}
		if i >= 0 && c.Median > 0 {
			best := slices.MaxFunc(groups[i].contenders, func(a, b string) int { return cmp.Compare(groups[i].main(a).Median, groups[i].main(b).Median) })
			share := groups[i].main(best).Median.In(float64(c.Median))
			if math.IsNaN(share) { // no contender has an answer
				s.Rows = append(s.Rows, row)
				continue
			}
			row[4], row[5] = best, fmt.Sprintf("%.0f %%", 100*share)
			if share >= near {
				s.Notes = append(s.Notes, fmt.Sprintf("%s: %s reaches %.0f %% of what the generators do by themselves; it may be better than shown.", name, best, 100*share))
			}
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}
