// Package model says what a packet costs in each mode: so many nanoseconds a packet and so many a byte, fitted to the lab's
// results at several packet sizes, and from that what a mix of sizes would cost.
package model

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"

	"weft/perf/probe"
	"weft/perf/result"
)

// Fewest is the smallest number of packet sizes that a model is fitted to: two parameters, and something to judge them by.
const Fewest = 3

// sweep is the test whose sizes the models are fitted to.
const sweep = "udp-rate"

// Estimate is a value with its 95 % confidence interval (Student's t).
type Estimate struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// HeldOut is what a model fitted without one size predicts for it.
type HeldOut struct {
	Size      int     `json:"size"`
	Measured  float64 `json:"measured"`  // ns per packet
	Predicted float64 `json:"predicted"` // ns per packet
	Error     float64 `json:"error"`     // relative to what was measured
}

// Line is ns per packet = Packet + Byte · size, by least squares over the medians of the sizes, weighted by 1/ns² because noise grows
// with what it is of.
type Line struct {
	Packet  Estimate  `json:"packet"` // ns
	Byte    Estimate  `json:"byte"`   // ns per byte of the inner IP packet
	Sizes   int       `json:"sizes"`
	HeldOut []HeldOut `json:"held_out"` // cross-validation, absent with three sizes

	intercept, slope, mean, weight, spread, deviation float64 // of the fit; see At
}

// Model is what a contender's packets cost.
type Model struct {
	Contender string `json:"contender"`
	Family    int    `json:"family"`
	InnerMTU  int    `json:"inner_mtu"`
	Time      Line   `json:"time"`          // of the path at its highest rate without loss: 1/rate
	CPU       *Line  `json:"cpu,omitempty"` // of the whole machine; absent where a size has no figure

	// Run and RunCPU are what it takes, ns, that a packet is not of the run of equal sizes before it: what is carried as super-packets has to begin
	// another one. Absent where no two sizes in turn were measured.
	Run    *Estimate `json:"run,omitempty"`
	RunCPU *Estimate `json:"run_cpu,omitempty"`

	// Unanswered is how many samples have no answer. They are left out.
	Unanswered int `json:"unanswered,omitempty"`

	measured map[int]point // by size; imixSize = of the mix
}

// imixSize is the place of IMIX among what was measured.
const imixSize = 0

// point is a size and what a packet of it took, ns.
type point struct{ size, nanos float64 }

// kind says what a row is for a model: its sizes are all one, two in turn, or those of IMIX.
func kind(p probe.Params) string {
	switch {
	case p["gso"]+p["gro"] != 0 || p["size"] <= 0:
		return ""
	case p["imix"] != 0:
		return "imix"
	case p["second"] != 0:
		return "pair"
	}
	return "size"
}

// Fit makes a model for every contender that has an answer at enough sizes; leftOut says who has not for having none. The error says that there is
// no model.
func Fit(r *result.Result) (models []Model, leftOut []string, err error) {
	type group struct {
		Model
		time, cpu []point
		pairs     []result.Row
	}
	var groups []*group
	for _, row := range r.Results {
		k := kind(row.Params)
		if row.Test != sweep || row.Metric != "rate" || k == "" {
			continue
		}
		family := int(row.Params["family"])
		i := slices.IndexFunc(groups, func(g *group) bool { return g.Contender == result.On(row.Contender, row.Path) && g.Family == family })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{Model: Model{Contender: result.On(row.Contender, row.Path), Family: family, InnerMTU: row.InnerMTU, measured: map[int]point{}}})
		}
		groups[i].Unanswered += row.Samples.Unanswered()
		if !(result.Median(row.Samples) > 0) { // no sample has an answer
			continue
		}
		size, nanos := row.Params["size"], 1e9/result.Median(row.Samples)
		switch k {
		case "pair":
			groups[i].pairs = append(groups[i].pairs, row)
			continue
		case "imix":
			groups[i].measured[imixSize] = point{nanos: nanos}
			continue
		}
		groups[i].time = append(groups[i].time, point{size, nanos})
		if row.CPU.NanosecondsPerPacket > 0 {
			groups[i].cpu = append(groups[i].cpu, point{size, row.CPU.NanosecondsPerPacket})
		}
	}
	for _, g := range groups {
		if len(g.time) < Fewest {
			if g.Unanswered > 0 {
				leftOut = append(leftOut, fmt.Sprintf("%s, family %d: samples without an answer: %d; of the %d sizes that are needed %d have one",
					g.Contender, g.Family, g.Unanswered, Fewest, len(g.time)))
			}
			continue
		}
		g.Time = validated(g.time)
		if len(g.cpu) == len(g.time) {
			line := validated(g.cpu)
			g.CPU = &line
		}
		for _, h := range g.Time.HeldOut {
			g.measured[h.Size] = point{float64(h.Size), h.Measured}
		}
		g.breaks(g.pairs)
		models = append(models, g.Model)
	}
	if models == nil {
		return nil, leftOut, fmt.Errorf("no contender has %s at %d sizes: run `weft lab run --scenario small-packets`", sweep, Fewest)
	}
	return models, leftOut, nil
}

// breaks estimates what the end of a run costs: what two sizes in turn took more than the line says of their mean, for each run of theirs. The
// interval is the line's and the samples', whichever is wider.
func (m *Model) breaks(pairs []result.Row) {
	var run, cpu []Estimate
	for _, row := range pairs {
		pair := Mix{{int(row.Params["size"]), 1}, {int(row.Params["second"]), 1}}
		const runs = .5 // a packet: two in turn are one run, the longer first
		size := pair.mean(m.InnerMTU)
		low, high := result.Interval(row.Samples)
		run = append(run, beyond(m.Time.At(size), 1e9/result.Median(row.Samples), 1e9/max(high, 1), 1e9/max(low, 1), runs))
		if m.CPU != nil && row.CPU.NanosecondsPerPacket > 0 {
			low, high := result.Interval(row.CPU.CostSamples)
			cpu = append(cpu, beyond(m.CPU.At(size), row.CPU.NanosecondsPerPacket, low, high, runs))
		}
	}
	m.Run, m.RunCPU = middle(run), middle(cpu)
}

// beyond is what was measured beyond what is known, by run.
func beyond(line Estimate, measured, low, high, runs float64) Estimate {
	half := max(line.High-line.Value, measured-low, high-measured)
	more := max(measured-line.Value, 0) // shorter packets in between make none dearer
	return Estimate{more / runs, max(measured-line.Value-half, 0) / runs, (max(measured-line.Value, 0) + half) / runs}
}

// middle is the median of estimates; nil of none.
func middle(list []Estimate) *Estimate {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b Estimate) int { return cmp.Compare(a.Value, b.Value) })
	return &list[len(list)/2]
}

// validated fits a line, and one without each size in turn.
func validated(points []point) Line {
	l := fit(points)
	if len(points) <= Fewest {
		return l
	}
	for i, p := range points {
		without := fit(slices.Delete(slices.Clone(points), i, i+1))
		predicted := without.intercept + without.slope*p.size
		l.HeldOut = append(l.HeldOut, HeldOut{int(p.size), p.nanos, predicted, predicted/p.nanos - 1})
	}
	return l
}

// fit is weighted least squares (Draper and Smith, Applied Regression Analysis, §2.11). At least three points of different sizes.
func fit(points []point) Line {
	var x, y, w []float64
	for _, p := range points {
		x, y, w = append(x, p.size), append(y, p.nanos), append(w, 1/(p.nanos*p.nanos))
	}
	l := Line{Sizes: len(points)}
	l.intercept, l.slope = stat.LinearRegression(x, y, w, false)
	l.mean = stat.Mean(x, w)
	squares := 0.0
	for i := range x {
		l.weight += w[i]
		l.spread += w[i] * (x[i] - l.mean) * (x[i] - l.mean)
		residual := y[i] - l.intercept - l.slope*x[i]
		squares += w[i] * residual * residual
	}
	l.deviation = math.Sqrt(squares / float64(len(x)-2))
	l.Packet = l.At(0)
	l.Byte = l.around(l.slope, l.deviation/math.Sqrt(l.spread))
	return l
}

// At is what packets of a mean size take on average, ns.
func (l Line) At(size float64) Estimate {
	return l.around(l.intercept+l.slope*size, l.deviation*math.Sqrt(1/l.weight+(size-l.mean)*(size-l.mean)/l.spread))
}

func (l Line) around(value, err float64) Estimate {
	half := err * distuv.StudentsT{Sigma: 1, Nu: float64(l.Sizes - 2)}.Quantile(0.975)
	return Estimate{value, value - half, value + half}
}

// Worst is the largest relative error of a size that was held out; NaN without cross-validation.
func (l Line) Worst() float64 {
	worst := math.NaN()
	for _, h := range l.HeldOut {
		if e := math.Abs(h.Error); !(e <= worst) {
			worst = e
		}
	}
	return worst
}

// Prediction is what a mix costs over one contender.
type Prediction struct {
	Model
	MeanSize float64   `json:"mean_size"`          // bytes, after what is larger than the inner MTU was cut to it
	Nanos    Estimate  `json:"ns_per_packet"`      // of the path
	Highest  Estimate  `json:"packets_per_s"`      // without loss
	Runs     float64   `json:"runs_per_packet"`    // of equal sizes, in random order
	Measured *float64  `json:"measured,omitempty"` // ns per packet, where the result has the mix itself
	Error    *float64  `json:"error,omitempty"`    // of the prediction, relative to that; of a size: of a model fitted without it
	Cores    *Estimate `json:"cores,omitempty"`    // of the whole machine at the rate asked for
	Carries  *bool     `json:"carries,omitempty"`  // the rate asked for is within what is carried without loss
}

// Predict says what a mix costs at a rate in packets per second; 0 = no rate in particular.
func (m Model) Predict(mix Mix, rate float64) (Prediction, error) {
	size, runs := mix.mean(m.InnerMTU), mix.runs()
	p := Prediction{Model: m, MeanSize: size, Runs: runs, Nanos: m.Time.At(size).plus(m.Run, runs)}
	if p.Nanos.Value <= 0 {
		return p, errors.New("the model does not fit: it gives no time for a packet")
	}
	p.check(mix)
	p.Highest = Estimate{1e9 / p.Nanos.Value, 1e9 / p.Nanos.High, 1e9 / max(p.Nanos.Low, 1)}
	if rate > 0 {
		carries := rate <= p.Highest.Value
		p.Carries = &carries
		if m.CPU != nil {
			e := m.CPU.At(size).plus(m.RunCPU, runs)
			p.Cores = &Estimate{e.Value * rate / 1e9, max(e.Low, 0) * rate / 1e9, e.High * rate / 1e9}
		}
	}
	return p, nil
}

// check holds the prediction against what was measured of the same mix.
func (p *Prediction) check(mix Mix) {
	at, predicted := imixSize, p.Nanos.Value
	if len(mix) == 1 {
		at = mix[0].Size
		i := slices.IndexFunc(p.Time.HeldOut, func(h HeldOut) bool { return h.Size == at })
		if i < 0 {
			return
		}
		predicted = p.Time.HeldOut[i].Predicted
	} else if !slices.Equal(mix, imix()) {
		return
	}
	if m, ok := p.measured[at]; ok {
		off := predicted/m.nanos - 1
		p.Measured, p.Error = &m.nanos, &off
	}
}

// plus adds something that is there times a packet; nil = nothing is known of it.
func (e Estimate) plus(each *Estimate, times float64) Estimate {
	if each == nil {
		return e
	}
	return Estimate{e.Value + times*each.Value, e.Low + times*each.Low, e.High + times*each.High}
}
