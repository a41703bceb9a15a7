package report

import (
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"

	"weft/perf/result"
)

// bars draws one bar a contender for a group's main figure: the median, its interval, and every sample as a dot.
func bars(id string, g *group, order []string) template.HTML {
	metric := g.metrics[0]
	s := g.scale(metric)
	top := 0.0
	for _, c := range g.contenders {
		for _, v := range g.main(c).Samples.Answered() {
			top = max(top, v/s.by)
		}
	}
	var said []string
	const row, left, right = 46.0, 4.0, 356.0
	d := newDrawing(id, g.title+": "+metric+" in "+s.name, "", row*float64(len(g.contenders))+26)
	x := axis{from: left, to: right, low: 0, top: top * 1.02}
	for _, t := range x.ticks(4) {
		d.line("grid", x.at(t), 4, x.at(t), d.height-18)
		d.text("tick", anchorAt(x, t), x.at(t), d.height-4, short(t))
	}
	for i, c := range g.contenders {
		r := g.main(c)
		y := row*float64(i) + 4
		value := unanswered
		if r.Median.Known() {
			value = digits(r.Median.In(s.by)) + " " + s.name + "  [" + between(r.Low.In(s.by), r.High.In(s.by)) + "]"
		}
		if _, _, is := Bimodal(r.Samples); is {
			value = "bimodal  " + value
		}
		d.text("name", "start", left, y+13, fit(c, value))
		d.text("value", "end", right, y+13, value)
		said = append(said, c+" "+value)
		if !r.Median.Known() {
			continue
		}
		middle, low, high := x.at(r.Median.In(s.by)), x.at(r.Low.In(s.by)), x.at(r.High.In(s.by))
		d.rect(fmt.Sprintf("bar s%d", slices.Index(order, c)%series), left, y+19, middle-left, 16)
		d.line("whisker", low, y+27, high, y+27)
		d.line("whisker", low, y+22, low, y+32)
		d.line("whisker", high, y+22, high, y+32)
		for k, v := range r.Samples.Answered() { // shifted up and down a little, so that equal ones are seen
			fmt.Fprintf(&d.b, `<circle class="sample" cx="%.1f" cy="%.1f" r="2.2"/>`, x.at(v/s.by), y+27+float64(k%3-1)*3.6)
		}
	}
	d.desc = "Bars from zero, best read in the table below. " + strings.Join(said, "; ") + "."
	return d.html()
}

// fit cuts a name that would run into the figure at the other end of its line. The table has it whole.
func fit(name, value string) string {
	const nameWidth, valueWidth = 6.7, 5.7 // of a letter, on average
	letters := []rune(name)
	room := int((drawingWidth - 12 - valueWidth*float64(len([]rune(value)))) / nameWidth)
	if len(letters) <= room {
		return name
	}
	return string(letters[:max(room-1, 1)]) + "…"
}

// anchorAt keeps the labels of an axis's ends inside the drawing.
func anchorAt(x axis, v float64) string {
	switch at := x.at(v); {
	case at < 14:
		return "start"
	case at > drawingWidth-16:
		return "end"
	}
	return "middle"
}

// part is one piece of a stacked bar.
type part struct {
	name  string
	value float64
}

// stack is one stacked bar.
type stack struct {
	name  string
	total string // as written beside it
	parts []part
}

// stacks draws stacked bars; the place of a name in names is its pattern.
func stacks(id, title string, names []string, list []stack) template.HTML {
	top := 0.0
	for _, s := range list {
		sum := 0.0
		for _, p := range s.parts {
			sum += p.value
		}
		top = max(top, sum)
	}
	const row, left, right = 42.0, 4.0, 356.0
	d := newDrawing(id, title, "", row*float64(len(list))+22)
	x := axis{from: left, to: right, low: 0, top: max(top, 1e-9)}
	var said []string
	for _, t := range x.ticks(4) {
		d.line("grid", x.at(t), 4, x.at(t), d.height-18)
		d.text("tick", anchorAt(x, t), x.at(t), d.height-4, short(t))
	}
	for i, s := range list {
		y := row*float64(i) + 4
		d.text("name", "start", left, y+12, fit(s.name, s.total))
		d.text("value", "end", right, y+12, s.total)
		sum := 0.0
		words := s.name + " " + s.total + ":"
		for _, p := range s.parts {
			from, to := x.at(sum), x.at(sum+p.value)
			k := slices.Index(names, p.name)
			d.rect(fmt.Sprintf("piece k%d", k%series), from, y+17, to-from, 16)
			if label := fmt.Sprint(k + 1); to-from > 12 {
				d.text("inside", "middle", (from+to)/2, y+29, label)
			}
			sum += p.value
			words += fmt.Sprintf(" %s %s,", p.name, digits(p.value))
		}
		said = append(said, strings.TrimSuffix(words, ","))
	}
	d.desc = strings.Join(said, "; ") + "."
	return d.html()
}

// curve is one contender's line or cloud of points.
type curve struct {
	series    int
	name      string
	points    [][2]float64
	low, high [][2]float64 // a band around it, or none
	filled    []bool       // of points, where they are marks and not a line
}

// plot draws curves over two axes. ticks are labels by value.
func plot(d *drawing, x, y axis, xTicks, yTicks map[float64]string, xName, yName string, list []curve) template.HTML {
	for _, v := range slices.Sorted(maps.Keys(xTicks)) {
		label := xTicks[v]
		d.line("grid", x.at(v), y.to, x.at(v), y.from)
		d.text("tick", anchorAt(x, v), x.at(v), y.from+14, label)
	}
	for _, v := range slices.Sorted(maps.Keys(yTicks)) {
		label := yTicks[v]
		d.line("grid", x.from, y.at(v), x.to, y.at(v))
		d.text("tick", "end", x.from-4, y.at(v)+4, label)
	}
	d.text("axis", "end", x.to, y.from+29, xName)
	d.text("axis", "start", 2, y.to-9, yName)
	at := func(points [][2]float64) [][2]float64 {
		to := make([][2]float64, len(points))
		for i, p := range points {
			to[i] = [2]float64{x.at(p[0]), y.at(p[1])}
		}
		return to
	}
	for _, c := range list {
		if len(c.low) > 0 {
			d.band(fmt.Sprintf("band s%d", c.series%series), at(c.low), at(c.high))
		}
	}
	for _, c := range list {
		points := at(c.points)
		if c.filled != nil {
			for i, p := range points {
				d.mark(c.series, p[0], p[1], c.filled[i])
			}
			continue
		}
		d.path(fmt.Sprintf("curve s%d", c.series%series), points)
		for i := range points { // a few marks along the line name it without its colour
			if every := max(len(points)/5, 1); i%every == every/2 {
				d.mark(c.series, points[i][0], points[i][1], true)
			}
		}
	}
	return d.html()
}

func labels(ticks []float64, unit string) map[float64]string {
	m := map[float64]string{}
	for _, t := range ticks {
		m[t] = short(t) + unit
	}
	return m
}

// nines places a quantile so that each further nine takes as much room: 0.9 at 1, 0.99 at 2.
func nines(q float64) float64 { return -math.Log10(max(1-q, 1e-6)) }

// latency draws the distribution as a CDF and as quantiles of the tail.
func latency(id, title string, order []string, details []result.Detail) (cdf, tail template.HTML) {
	low, top := math.Inf(1), 0.0
	least := 1.0
	for _, d := range details {
		for _, q := range d.Latency {
			if q.Quantile < 1 && q.Us > 0 {
				low, top, least = min(low, q.Us), max(top, q.Us), min(least, 1-q.Quantile)
			}
		}
	}
	x := axis{from: 40, to: 352, low: low * .95, top: top * 1.05, log: true}
	y := axis{from: 200, to: 20, low: 0, top: 1}
	tx := axis{from: 40, to: 352, low: 0, top: nines(1 - least)}
	ty := axis{from: 200, to: 20, low: low * .95, top: top * 1.05, log: true}
	var rising, tails []curve
	var said []string
	for _, d := range details {
		c := curve{series: slices.Index(order, d.Contender), name: d.Contender}
		t := c
		for _, q := range d.Latency {
			if q.Quantile == 1 {
				continue
			}
			c.points = append(c.points, [2]float64{q.Us, q.Quantile})
			t.points = append(t.points, [2]float64{nines(q.Quantile), q.Us})
			t.low = append(t.low, [2]float64{nines(q.Quantile), q.Low})
			t.high = append(t.high, [2]float64{nines(q.Quantile), q.High})
			if q.Quantile == .5 || q.Quantile == .99 {
				said = append(said, fmt.Sprintf("%s p%g %s µs", d.Contender, q.Quantile*100, digits(q.Us)))
			}
		}
		rising, tails = append(rising, c), append(tails, t)
	}
	desc := strings.Join(said, ", ") + "."
	tailTicks := map[float64]string{}
	for _, q := range []struct {
		q    float64
		name string
	}{{0, "min"}, {.5, "p50"}, {.9, "p90"}, {.99, "p99"}, {.999, "p99.9"}, {.9999, "p99.99"}} {
		if nines(q.q) <= tx.top*1.001 {
			tailTicks[nines(q.q)] = q.name
		}
	}
	cdf = plot(newDrawing(id+"-cdf", title+": share of round trips that took at most so long", desc, 234), x, y,
		labels(x.ticks(6), ""), map[float64]string{0: "0 %", .25: "25 %", .5: "50 %", .75: "75 %", 1: "100 %"}, "round trip, µs (logarithmic)", "share", rising)
	tail = plot(newDrawing(id+"-tail", title+": quantiles, from the middle to the tail", desc, 234), tx, ty,
		tailTicks, labels(ty.ticks(6), ""), "quantile (each nine the same width)", "µs (logarithmic)", tails)
	return cdf, tail
}

// Losses below lossFloor are drawn at it. What is below, down to lossNone, is the band of trials that lost nothing.
const (
	lossFloor = 1e-4
	lossNone  = 5e-6
)

// loss draws every trial of the searches: what was offered and what was lost.
func loss(id, title string, order []string, details []result.Detail) template.HTML {
	top := 0.0
	for _, d := range details {
		for _, t := range d.Trials {
			top = max(top, t.Offered)
		}
	}
	s := scaleOf("packet/s", top)
	x := axis{from: 46, to: 352, low: 0, top: top / s.by * 1.03}
	y := axis{from: 240, to: 20, low: lossNone, top: 1, log: true}
	var list []curve
	var said []string
	for i, d := range details {
		none := lossNone * math.Pow(lossFloor/lossNone, (float64(i)+.5)/float64(len(details))*.85)
		c := curve{series: slices.Index(order, d.Contender), name: d.Contender, filled: []bool{}}
		passed := 0
		for _, t := range d.Trials {
			lost := max(t.Loss, lossFloor)
			if t.Loss <= 0 {
				lost = none
			}
			c.points = append(c.points, [2]float64{t.Offered / s.by, lost})
			c.filled = append(c.filled, t.Confirmed)
			if t.Loss <= .001 {
				passed++
			}
		}
		list = append(list, c)
		said = append(said, fmt.Sprintf("%s: %d trials, %d with at most 0.1 %% loss", d.Contender, len(d.Trials), passed))
	}
	drawn := newDrawing(id, title+": loss against offered load", strings.Join(said, "; ")+".", 274)
	drawn.line("limit", x.from, y.at(.001), x.to, y.at(.001))
	return plot(drawn, x, y, labels(x.ticks(5), ""),
		map[float64]string{math.Sqrt(lossNone * lossFloor): "none", lossFloor: "0.01 %", .001: "0.1 %", .01: "1 %", .1: "10 %", 1: "100 %"}, "offered, "+s.name, "lost (logarithmic)", list)
}
