package compare

import (
	"fmt"
	"slices"

	"weft/perf/probe"
	"weft/perf/result"
)

// The verdicts on a stage that only one of the results has.
const (
	New  Verdict = "new"
	Gone Verdict = "gone"
)

// Stage compares what one step of a lane took, nanoseconds per packet.
//
// How fast the machine is differs between runs and drifts within one, and all stages with it. So a stage is judged as a row is: by
// itself, and relative to what a packet (or a gigabyte) of the control cost the machine in the same round.
type Stage struct {
	Contender string       `json:"contender"`
	Path      string       `json:"path,omitempty"`
	Test      string       `json:"test"`
	Params    probe.Params `json:"params"`
	Node      string       `json:"node"`
	Lane      string       `json:"lane"`
	Stage     string       `json:"stage"`
	A         Side         `json:"a"`               // zero for a new one
	B         Side         `json:"b"`               // zero for one that is gone
	Shift     *float64     `json:"shift,omitempty"` // ns per packet, B − A (Hodges and Lehmann)
	Low       *float64     `json:"low,omitempty"`   // of its 95 % interval
	High      *float64     `json:"high,omitempty"`
	P         *float64     `json:"p,omitempty"`
	PControl  *float64     `json:"p_control,omitempty"` // relative to the control; absent without one
	Verdict   Verdict      `json:"verdict"`
}

// StageSum is what the lanes together say of the stages of one name and contender.
type StageSum struct {
	Contender string  `json:"contender"`
	Stage     string  `json:"stage"`
	Lanes     int     `json:"lanes"` // compared, in all tests
	Longer    int     `json:"longer"`
	Shorter   int     `json:"shorter"`
	Shift     float64 `json:"shift"` // ns per packet, median over the lanes that differ
}

// Name is the stage as a person names it.
func (s Stage) Name() string {
	return stageKey(s.Contender, s.Path, s.Test, s.Params, s.Node, s.Lane, s.Stage)
}

func stageKey(contender, path, test string, params probe.Params, node, lane, stage string) string {
	return key(contender, path, test, params, fmt.Sprintf("node %s lane %s %s", node, lane, stage))
}

// stages compares the ledgers. A stage that only one result has counts where the other knows its lane.
func stages(a, b *result.Result, o Options) []Stage {
	before, lanesA := ledger(a)
	after, lanesB := ledger(b)
	list := []Stage{}
	for _, s := range after {
		old, known := find(before, s.Name())
		switch {
		case known:
			list = append(list, judgeStage(old, s, o.Alpha, costs(a, o.Control, s.Stage), costs(b, o.Control, s.Stage)))
		case lanesA[s.lane()]:
			list = append(list, s.only(Side{}, s.side(), New))
		}
	}
	for _, s := range before {
		if _, stays := find(after, s.Name()); !stays && lanesB[s.lane()] {
			list = append(list, s.only(s.side(), Side{}, Gone))
		}
	}
	return list
}

// entry is a stage with its samples, one for each round that timed it.
type entry struct {
	Stage
	samples result.Samples
}

func (e entry) lane() string { return key(e.Contender, e.Path, e.Test, e.Params, e.Node+" "+e.Lane) }
func (e entry) side() Side   { return side(e.samples) }

func (e entry) only(a, b Side, v Verdict) Stage {
	s := e.Stage
	s.A, s.B, s.Verdict = a, b, v
	return s
}

// ledger lists the stages that were timed, and the lanes they are of.
func ledger(r *result.Result) (list []entry, lanes map[string]bool) {
	lanes = map[string]bool{}
	for _, d := range r.Details {
		for _, s := range d.Stages {
			if len(s.Samples) == 0 {
				continue
			}
			e := entry{Stage{Contender: d.Contender, Path: d.Path, Test: d.Test, Params: d.Params, Node: s.Node, Lane: s.Lane, Stage: s.Stage}, s.Samples}
			list = append(list, e)
			lanes[e.lane()] = true
		}
	}
	return list, lanes
}

func find(list []entry, name string) (entry, bool) {
	for _, e := range list {
		if e.Name() == name {
			return e, true
		}
	}
	return entry{}, false
}

// costs is what the control cost the machine in the stage's test, by round; nil where it was not there.
func costs(r *result.Result, control string, s Stage) result.Samples {
	i := slices.IndexFunc(r.Results, func(row result.Row) bool {
		return row.Contender == control && key("", row.Path, row.Test, row.Params, "") == key("", s.Path, s.Test, s.Params, "")
	})
	if i < 0 {
		return nil
	}
	return r.Results[i].CPU.CostSamples
}

func judgeStage(a, b entry, alpha float64, controlA, controlB result.Samples) Stage {
	r := Row{Unit: "ns", A: a.side(), B: b.side()}
	r.judge(alpha, a.samples, b.samples)
	switch {
	case controlA == nil || controlB == nil:
	case len(a.samples) < len(controlA) || len(b.samples) < len(controlB): // nothing passed in some rounds: too little to time
		r.Verdict = TooFew
	default:
		r.judgeRelative(alpha, a.samples, controlA, b.samples, controlB)
	}
	s := b.only(r.A, r.B, r.Verdict)
	s.P, s.PControl = &r.P, r.PControl
	middle, low, high := shiftInterval(a.samples, b.samples)
	s.Shift, s.Low, s.High = &middle, &low, &high
	return s
}

// sum adds the stages up by contender and name, those that differ in most lanes first.
func sum(all []Stage) []StageSum {
	sums := []StageSum{}
	shifts := map[int][]float64{}
	for _, s := range all {
		if s.Shift == nil {
			continue
		}
		i := slices.IndexFunc(sums, func(o StageSum) bool { return o.Contender == s.Contender && o.Stage == s.Stage })
		if i < 0 {
			i = len(sums)
			sums = append(sums, StageSum{Contender: s.Contender, Stage: s.Stage})
		}
		sums[i].Lanes++
		switch s.Verdict {
		case Worse:
			sums[i].Longer++
		case Better:
			sums[i].Shorter++
		default:
			continue
		}
		shifts[i] = append(shifts[i], *s.Shift)
	}
	for i := range sums {
		if len(shifts[i]) > 0 {
			sums[i].Shift = result.Median(shifts[i])
		}
	}
	slices.SortStableFunc(sums, func(a, b StageSum) int { return b.Longer + b.Shorter - a.Longer - a.Shorter })
	return sums
}
