// Package model says what a packet costs in each mode: so many nanoseconds a packet and so many a byte, fitted to the lab's
// results at several packet sizes, and from that what a mix of sizes would cost.
package model

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"

	"weft/perf"
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
}

// point is a size and what a packet of it took, ns.
type point struct{ size, nanos float64 }

// Fit makes a model for every contender that was measured at enough sizes. The error says that there is none.
func Fit(r *perf.Result) ([]Model, error) {
	type group struct {
		Model
		time, cpu []point
	}
	var groups []*group
	for _, row := range r.Results {
		if row.Test != sweep || row.Metric != "rate" || row.Params["gso"] != 0 || row.Params["size"] <= 0 || perf.Median(row.Samples) <= 0 {
			continue
		}
		family := int(row.Params["family"])
		i := slices.IndexFunc(groups, func(g *group) bool { return g.Contender == row.Contender && g.Family == family })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{Model: Model{Contender: row.Contender, Family: family, InnerMTU: row.InnerMTU}})
		}
		size := row.Params["size"]
		groups[i].time = append(groups[i].time, point{size, 1e9 / perf.Median(row.Samples)})
		if row.CPU.NanosecondsPerPacket > 0 {
			groups[i].cpu = append(groups[i].cpu, point{size, row.CPU.NanosecondsPerPacket})
		}
	}
	var models []Model
	for _, g := range groups {
		if len(g.time) < Fewest {
			continue
		}
		g.Time = validated(g.time)
		if len(g.cpu) == len(g.time) {
			line := validated(g.cpu)
			g.CPU = &line
		}
		models = append(models, g.Model)
	}
	if models == nil {
		return nil, fmt.Errorf("no contender has %s at %d sizes: run `weft lab run --scenario small-packets`", sweep, Fewest)
	}
	return models, nil
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
	MeanSize float64   `json:"mean_size"`         // bytes, after what is larger than the inner MTU was cut to it
	Nanos    Estimate  `json:"ns_per_packet"`     // of the path
	Highest  Estimate  `json:"packets_per_s"`     // without loss
	Cores    *Estimate `json:"cores,omitempty"`   // of the whole machine at the rate asked for
	Carries  *bool     `json:"carries,omitempty"` // the rate asked for is within what is carried without loss
}

// Predict says what a mix costs at a rate in packets per second; 0 = no rate in particular.
func (m Model) Predict(mix Mix, rate float64) (Prediction, error) {
	size := mix.mean(m.InnerMTU)
	p := Prediction{Model: m, MeanSize: size, Nanos: m.Time.At(size)}
	if p.Nanos.Value <= 0 {
		return p, errors.New("the model does not fit: it gives no time for a packet")
	}
	p.Highest = Estimate{1e9 / p.Nanos.Value, 1e9 / p.Nanos.High, 1e9 / max(p.Nanos.Low, 1)}
	if rate > 0 {
		carries := rate <= p.Highest.Value
		p.Carries = &carries
		if m.CPU != nil {
			e := m.CPU.At(size)
			p.Cores = &Estimate{e.Value * rate / 1e9, max(e.Low, 0) * rate / 1e9, e.High * rate / 1e9}
		}
	}
	return p, nil
}
