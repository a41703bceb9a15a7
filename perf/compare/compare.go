// Package compare says what changed between two results of the lab beyond their noise.
//
// Two samples of a row are compared as benchstat does (golang.org/x/perf/benchmath, no assumption about their
// distribution): by the Mann-Whitney U test. Runs are minutes or weeks apart, and what a machine gives drifts; where
// both results have a control, a contender that no change of weft touches, a row has to differ by itself and relative to the
// control's sample of the same round.
package compare

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/perf/benchmath"

	"weft/perf/probe"
	"weft/perf/result"
)

// Alpha is how probable a difference by chance may be in one row: of a hundred rows of the same scenario run twice, one is
// expected to be called different, so 95 % of "no difference" hold with room. Five rounds against five can reach it (2/252), four cannot.
const Alpha = 0.01

// Options are what a person can choose.
type Options struct {
	Alpha   float64 // 0 = Alpha
	Control string  // contender that no change touches; "" = compare each row by itself
}

// Comparison is what two results say about each other.
type Comparison struct {
	A           Run          `json:"a"`
	B           Run          `json:"b"`
	Alpha       float64      `json:"alpha"`
	Method      string       `json:"method"`
	Fingerprint []Difference `json:"fingerprint"` // what of host and rounds differs
	Rows        []Row        `json:"rows"`
	Stages      []Stage      `json:"stages"`   // of userspace contenders, where both results have their times
	StageSums   []StageSum   `json:"by_stage"` // the same by name
	OnlyA       []string     `json:"only_a"`   // rows that the other result lacks
	OnlyB       []string     `json:"only_b"`
	Corrupt     []Corruption `json:"corrupt"` // of contenders and tests where bytes arrived other than they were sent
}

// Corruption is where a contender delivered other bytes than were sent. Its figures are not compared.
type Corruption struct {
	Contender string          `json:"contender"`
	Path      string          `json:"path,omitempty"`
	Test      string          `json:"test"`
	Params    probe.Params    `json:"params"`
	A         probe.Integrity `json:"a"`
	B         probe.Integrity `json:"b"`
}

// Name is what is corrupt as a person names it.
func (c Corruption) Name() string {
	return result.On(c.Contender, c.Path) + " " + probe.Selection{Test: c.Test, Params: c.Params}.String()
}

// Run is one of the two results.
type Run struct {
	File string `json:"file"`
	Weft string `json:"weft"`
}

// Difference is one property that the two runs do not share.
type Difference struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// Verdict is what a row says.
type Verdict string

// The verdicts. A figure that is neither better nor worse for being larger is Changed.
const (
	Same    Verdict = "no difference"
	Better  Verdict = "better"
	Worse   Verdict = "worse"
	Changed Verdict = "changed"
	TooFew  Verdict = "too few rounds" // no outcome could have been a difference

	// Unanswered is a figure that one of the results does not have: none of its samples has an answer.
	Unanswered Verdict = "unanswered"
	// Corrupt is a figure of what delivered other bytes than were sent in one of the results: it does not count.
	Corrupt Verdict = "corrupt"
)

// Row compares one figure.
type Row struct {
	Contender string       `json:"contender"`
	Path      string       `json:"path,omitempty"` // from which host to which
	Test      string       `json:"test"`
	Params    probe.Params `json:"params"`
	Metric    string       `json:"metric"`
	Unit      string       `json:"unit"`
	A         Side         `json:"a"`
	B         Side         `json:"b"`
	Ratio     *float64     `json:"ratio,omitempty"` // of the medians, B/A; absent where A's is 0, or there is none
	Low       *float64     `json:"low,omitempty"`   // of the 95 % interval of B/A, absent where a sample is not positive
	High      *float64     `json:"high,omitempty"`
	P         float64      `json:"p"`                   // of a difference at least as clear by chance
	PControl  *float64     `json:"p_control,omitempty"` // the same, relative to the control; absent without one
	Verdict   Verdict      `json:"verdict"`
}

// Side is a figure in one of the runs.
type Side struct {
	Median     result.Figure `json:"median"`
	N          int           `json:"n"`                    // samples with an answer, which are those compared
	Unanswered int           `json:"unanswered,omitempty"` // samples without
}

func side(samples result.Samples) Side {
	answered := samples.Answered()
	return Side{result.Figure(result.Median(answered)), len(answered), samples.Unanswered()}
}

// Count is how many rows have a verdict.
func (c *Comparison) Count(v Verdict) (n int) {
	for _, r := range c.Rows {
		if r.Verdict == v {
			n++
		}
	}
	return n
}

// Unanswered is how many samples of the two results are left out for having no answer.
func (c *Comparison) Unanswered() (a, b int) {
	for _, r := range c.Rows {
		a, b = a+r.A.Unanswered, b+r.B.Unanswered
	}
	return a, b
}

// Name is the row as a person names it.
func (r Row) Name() string { return key(r.Contender, r.Path, r.Test, r.Params, r.Metric) }

func key(contender, path, test string, params probe.Params, metric string) string {
	return result.On(contender, path) + " " + probe.Selection{Test: test, Params: params}.String() + " " + metric
}

// IncomparableError is two results whose rows answer different questions.
type IncomparableError struct{ Differences []Difference }

func (e *IncomparableError) Error() string {
	words := make([]string, len(e.Differences))
	for i, d := range e.Differences {
		words[i] = fmt.Sprintf("%s %s and %s", d.Name, d.A, d.B)
	}
	return "the results cannot be compared, their runs have different settings: " + strings.Join(words, ", ") + ": run both alike"
}

// Results compares b with a, which came before. The error is an *IncomparableError, or says what is wrong with a result.
func Results(a, b *result.Result, o Options) (*Comparison, error) {
	if o.Alpha == 0 {
		o.Alpha = Alpha
	}
	if different := settings(a, b); len(different) > 0 {
		return nil, &IncomparableError{different}
	}
	c := &Comparison{
		A: Run{Weft: of(a, weft)}, B: Run{Weft: of(b, weft)}, Alpha: o.Alpha, Fingerprint: fingerprint(a, b),
		Method: "Mann-Whitney U", Rows: []Row{}, OnlyA: []string{}, OnlyB: []string{}, Corrupt: corruptions(a, b),
	}
	in, err := index(a)
	if err != nil {
		return nil, fmt.Errorf("a: %w", err)
	}
	next, err := index(b)
	if err != nil {
		return nil, fmt.Errorf("b: %w", err)
	}
	controlled := false
	for _, after := range b.Results {
		name := rowKey(after)
		before, ok := in[name]
		if !ok {
			c.OnlyB = append(c.OnlyB, name)
			continue
		}
		r := row(before, after)
		r.judge(o.Alpha, before.Samples, after.Samples)
		if control := key(o.Control, after.Path, after.Test, after.Params, after.Metric); o.Control != "" && control != name {
			controlled = r.judgeRelative(o.Alpha, before.Samples, in[control].Samples, after.Samples, next[control].Samples) || controlled
		}
		if slices.ContainsFunc(c.Corrupt, r.of) {
			r.Verdict = Corrupt
		}
		c.Rows = append(c.Rows, r)
	}
	for _, before := range a.Results {
		if _, ok := next[rowKey(before)]; !ok {
			c.OnlyA = append(c.OnlyA, rowKey(before))
		}
	}
	c.Stages = stages(a, b, o)
	c.StageSums = sum(c.Stages)
	if controlled {
		c.Method += ", by itself and relative to " + o.Control + " in the same round"
	}
	return c, nil
}

// corruptions pairs what is corrupt in one of the results with what the other says of the same.
func corruptions(a, b *result.Result) []Corruption {
	list := []Corruption{}
	for k, r := range []*result.Result{a, b} {
		for _, i := range r.Integrity {
			at := slices.IndexFunc(list, func(c Corruption) bool { return c.same(i.Contender, i.Path, i.Test, i.Params) })
			if at < 0 {
				at = len(list)
				list = append(list, Corruption{Contender: i.Contender, Path: i.Path, Test: i.Test, Params: i.Params})
			}
			if k == 0 {
				list[at].A = i.Integrity
			} else {
				list[at].B = i.Integrity
			}
		}
	}
	return slices.DeleteFunc(list, func(c Corruption) bool { return c.A.Corrupt+c.B.Corrupt == 0 })
}

func (c Corruption) same(contender, path, test string, params probe.Params) bool {
	return c.Contender == contender && c.Path == path && c.Test == test && maps.Equal(c.Params, params)
}

// of says whether the row is of what is corrupt.
func (r Row) of(c Corruption) bool { return c.same(r.Contender, r.Path, r.Test, r.Params) }

func rowKey(r result.Row) string { return key(r.Contender, r.Path, r.Test, r.Params, r.Metric) }

// index finds rows by name.
func index(r *result.Result) (map[string]result.Row, error) {
	rows := map[string]result.Row{}
	for _, row := range r.Results {
		name := rowKey(row)
		if _, twice := rows[name]; twice {
			return nil, fmt.Errorf("the row %s is there twice", name)
		}
		if len(row.Samples) == 0 {
			return nil, fmt.Errorf("the row %s has no samples", name)
		}
		rows[name] = row
	}
	return rows, nil
}

// settings lists what makes rows answer different questions.
func settings(a, b *result.Result) []Difference {
	var d differences
	d.add("layout", a.Settings.Layout, b.Settings.Layout)
	d.add("duration_s", a.Settings.Duration, b.Settings.Duration)
	d.add("mtu", a.Settings.MTU, b.Settings.MTU)
	d.add("nodes", a.Settings.Nodes, b.Settings.Nodes)
	d.add("queues", a.Settings.Queues, b.Settings.Queues)
	d.add("load", cmp.Or(a.Settings.Load, "unbounded"), cmp.Or(b.Settings.Load, "unbounded"))
	d.add("tcp_congestion", of(a, congestion), of(b, congestion))
	return d
}

// fingerprint lists what else may be why rows differ.
func fingerprint(a, b *result.Result) []Difference {
	d := differences{}
	for _, p := range []struct {
		name string
		of   func(result.Host) string
	}{
		{"kernel", func(h result.Host) string { return h.Kernel }},
		{"cpu", func(h result.Host) string { return h.CPU }},
		{"cores", func(h result.Host) string { return fmt.Sprint(h.Cores) }},
		{"mitigations", func(h result.Host) string { return h.Mitigations }},
		{"go", func(h result.Host) string { return h.Go }},
		{"weft", weft},
	} {
		d.add(p.name, of(a, p.of), of(b, p.of))
	}
	d.add("repeat", a.Settings.Repeat, b.Settings.Repeat)
	d.add("warmup", a.Settings.Warmup, b.Settings.Warmup)
	d.add("fault", cmp.Or(a.Settings.Fault, "none"), cmp.Or(b.Settings.Fault, "none"))
	return d
}

func weft(h result.Host) string       { return h.Weft }
func congestion(h result.Host) string { return h.TCPCongestion }

// of is a property of a result's hosts: one where all have the same, else each with its host.
func of(r *result.Result, property func(result.Host) string) string {
	var all []string
	same := true
	for _, h := range r.Hosts {
		same = same && property(h) == property(r.Hosts[0])
		all = append(all, h.Name+" "+property(h))
	}
	switch {
	case len(all) == 0:
		return ""
	case same:
		return property(r.Hosts[0])
	}
	return strings.Join(all, ", ")
}

type differences []Difference

func (d *differences) add(name string, a, b any) {
	if a != b {
		*d = append(*d, Difference{name, fmt.Sprint(a), fmt.Sprint(b)})
	}
}

func row(before, after result.Row) Row {
	r := Row{
		Contender: after.Contender, Path: after.Path, Test: after.Test, Params: maps.Clone(after.Params), Metric: after.Metric, Unit: after.Unit,
		A: side(before.Samples), B: side(after.Samples),
	}
	if r.answered() && r.A.Median != 0 {
		ratio := float64(r.B.Median / r.A.Median)
		r.Ratio = &ratio
	}
	if low, high, ok := ratioInterval(before.Samples.Answered(), after.Samples.Answered()); ok {
		r.Low, r.High = &low, &high
	}
	return r
}

// answered says that both results have the figure.
func (r *Row) answered() bool { return r.A.N > 0 && r.B.N > 0 }

// judge sets the verdict by the row's own samples.
func (r *Row) judge(alpha float64, a, b result.Samples) {
	a, b = a.Answered(), b.Answered()
	r.P = mannWhitney(a, b)
	switch {
	case !r.answered():
		r.Verdict = Unanswered
	case leastP(len(a), len(b)) > alpha:
		r.Verdict = TooFew
	case r.P > alpha || r.A.Median == r.B.Median:
		r.Verdict = Same
	default:
		r.Verdict = direction(r.Unit, r.B.Median > r.A.Median)
	}
}

// judgeRelative takes a difference back that the control has, too. It reports whether there is a control to ask.
func (r *Row) judgeRelative(alpha float64, a, controlA, b, controlB result.Samples) bool {
	relA, okA := relative(a, controlA)
	relB, okB := relative(b, controlB)
	if !okA || !okB || !r.answered() {
		return false
	}
	p := mannWhitney(relA, relB)
	r.PControl = &p
	up, relUp := r.B.Median > r.A.Median, result.Median(relB) > result.Median(relA)
	if leastP(len(relA), len(relB)) > alpha { // too few rounds in which both have an answer
		r.Verdict = TooFew
	}
	if r.Verdict != TooFew && (p > alpha || up != relUp) {
		r.Verdict = Same
	}
	return true
}

// relative divides samples by the control's of the same rounds, where both have an answer; false where that is not possible.
func relative(samples, control result.Samples) ([]float64, bool) {
	if len(samples) != len(control) || slices.ContainsFunc(control, func(v float64) bool { return v <= 0 }) {
		return nil, false
	}
	ratios := make(result.Samples, len(samples))
	for i := range samples {
		ratios[i] = samples[i] / control[i]
	}
	answered := ratios.Answered()
	return answered, len(answered) > 0
}

// direction says what a change of a figure means, by its unit.
func direction(unit string, up bool) Verdict {
	larger, smaller := Changed, Changed
	switch unit {
	case "bit/s", "packet/s", "1/s":
		larger, smaller = Better, Worse
	case "us", "ns", "core", "ratio":
		larger, smaller = Worse, Better
	}
	if up {
		return larger
	}
	return smaller
}

// mannWhitney is the two-sided p of samples being drawn from one distribution: exact for 50 samples at most, 25 with ties.
func mannWhitney(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	thresholds := &benchmath.Thresholds{CompareAlpha: Alpha}
	p := benchmath.AssumeNothing.Compare(benchmath.NewSample(slices.Clone(a), thresholds), benchmath.NewSample(slices.Clone(b), thresholds)).P
	if math.IsNaN(p) {
		return 1
	}
	return p
}

// leastP is the p of two samples that do not overlap at all: 2 / C(n+m, n).
func leastP(n, m int) float64 {
	p := 2.0
	for i := 1; i <= n; i++ {
		p *= float64(i) / float64(m+i)
	}
	return min(p, 1)
}
