package compare

import (
	"fmt"

	"weft/perf"
	"weft/perf/probe"
)

// The verdicts on a stage that only one of the results has.
const (
	New  Verdict = "new"
	Gone Verdict = "gone"
)

// Stage compares what one step of a lane took, nanoseconds per packet. There is no control for it: it is judged by itself.
type Stage struct {
	Contender string       `json:"contender"`
	Test      string       `json:"test"`
	Params    probe.Params `json:"params"`
	Node      string       `json:"node"`
	Lane      string       `json:"lane"`
	Stage     string       `json:"stage"`
	A         Side         `json:"a"` // zero for a new one
	B         Side         `json:"b"` // zero for one that is gone
	P         *float64     `json:"p,omitempty"`
	Verdict   Verdict      `json:"verdict"`
}

// Name is the stage as a person names it.
func (s Stage) Name() string {
	return stageKey(s.Contender, s.Test, s.Params, s.Node, s.Lane, s.Stage)
}

func stageKey(contender, test string, params probe.Params, node, lane, stage string) string {
	return key(contender, test, params, fmt.Sprintf("node %s lane %s %s", node, lane, stage))
}

// stages compares the ledgers. A stage that only one result has counts where the other knows its lane.
func stages(a, b *perf.Result, alpha float64) []Stage {
	before, lanesA := ledger(a)
	after, lanesB := ledger(b)
	list := []Stage{}
	for _, s := range after {
		old, known := find(before, s.Name())
		switch {
		case known:
			list = append(list, judgeStage(old, s, alpha))
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
	samples []float64
}

func (e entry) lane() string { return key(e.Contender, e.Test, e.Params, e.Node+" "+e.Lane) }
func (e entry) side() Side   { return Side{perf.Median(e.samples), len(e.samples)} }

func (e entry) only(a, b Side, v Verdict) Stage {
	s := e.Stage
	s.A, s.B, s.Verdict = a, b, v
	return s
}

// ledger lists the stages that were timed, and the lanes they are of.
func ledger(r *perf.Result) (list []entry, lanes map[string]bool) {
	lanes = map[string]bool{}
	for _, d := range r.Details {
		for _, s := range d.Stages {
			if len(s.Samples) == 0 {
				continue
			}
			e := entry{Stage{Contender: d.Contender, Test: d.Test, Params: d.Params, Node: s.Node, Lane: s.Lane, Stage: s.Stage}, s.Samples}
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

func judgeStage(a, b entry, alpha float64) Stage {
	r := Row{Unit: "ns", A: a.side(), B: b.side()}
	r.judge(alpha, a.samples, b.samples)
	s := b.only(r.A, r.B, r.Verdict)
	s.P = &r.P
	return s
}
