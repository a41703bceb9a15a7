package report

import (
	"fmt"
	"slices"
	"strings"

	"weft/perf/result"
)

// cell is one comparison with the baseline, in the table of the verdict.
type cell struct {
	Text     string // "0.50 ×", or why there is none
	Interval string // "(0.40–0.60)"
	Word     string // "no difference", "49 % less"; empty where there is nothing to compare
	Worse    bool   // it costs something
}

// standing is what one contender costs.
type standing struct {
	Contender string
	Cells     []cell // as in verdict.Heads
	Sentences []string
}

// verdict compares every contender with the baseline.
type verdict struct {
	Heads     []string
	Standings []standing
}

// question is one column of the verdict.
type question struct {
	head          string
	test, metric  string
	higherIsWorse bool
	subject       string // of the sentence
	less, more    string
}

var questions = []question{
	{"TCP throughput", "tcp-stream", "throughput", false, "TCP throughput", "lower", "higher"},
	{"Round trip, median", "tcp-rr", "p50", true, "a TCP round trip", "shorter", "longer"},
	{"Round trip, p99", "tcp-rr", "p99", true, "a TCP round trip's 99th percentile", "shorter", "longer"},
	{"UDP round trip, median", "udp-rr", "p50", true, "a UDP round trip", "shorter", "longer"},
	{"Round trip beside a stream, median", "loaded-rr", "p50", true, "a UDP round trip beside a TCP stream", "shorter", "longer"},
	{"Packets without loss", "udp-rate", "rate", false, "the packet rate without loss", "lower", "higher"},
	{"New connections", "tcp-crr", "rate", false, "the rate of new connections", "lower", "higher"},
	{"CPU at a fixed rate", "cpu-fixed", "cpu", true, "the processor time of a fixed stream", "lower", "higher"},
}

// judge compares r's contenders with the baseline; nil where the run had none.
func judge(groups []*group) *verdict {
	v := &verdict{}
	var order []string
	for _, g := range groups {
		for _, c := range g.contenders {
			if c != baseline && !slices.Contains(order, c) {
				order = append(order, c)
			}
		}
	}
	standings := make([]standing, len(order))
	sentences := make([][]string, len(order))
	mtus := make([]int, len(order))
	base := 0
	any := false
	for _, q := range questions {
		g := find(groups, q.test)
		if g == nil || len(g.rows[[2]string{baseline, q.metric}].Samples) == 0 {
			continue
		}
		any = true
		b := g.rows[[2]string{baseline, q.metric}]
		base = b.InnerMTU
		v.Heads = append(v.Heads, head(q.head, g))
		for i, c := range order {
			row := g.rows[[2]string{c, q.metric}]
			r, ok := ratioOf(row.Samples, b.Samples)
			cell, clause := q.answer(r, ok)
			if !ok && row.Samples.Unanswered()+b.Samples.Unanswered() > 0 {
				cell.Text = unanswered
			}
			standings[i].Cells = append(standings[i].Cells, cell)
			if clause != "" {
				sentences[i] = append(sentences[i], sentence(clause))
			}
		}
		if q.test != "tcp-stream" && q.test != "udp-rate" {
			continue
		}
		per := "CPU per packet"
		if q.test == "tcp-stream" {
			per = "CPU per gigabyte"
		}
		v.Heads = append(v.Heads, head(per, g))
		for i, c := range order {
			r, ok := ratioOf(g.main(c).CPU.CostSamples, b.CPU.CostSamples)
			if old, rows := costOf(g.main(c).CPU), costOf(b.CPU); !ok && old > 0 && rows > 0 {
				standings[i].Cells = append(standings[i].Cells, cell{Text: digits(old/rows) + " ×, without interval: the result has no samples of it"})
				continue
			}
			cell, clause := question{higherIsWorse: true, subject: per, less: "lower", more: "higher"}.answer(r, ok)
			standings[i].Cells = append(standings[i].Cells, cell)
			if clause != "" {
				sentences[i] = append(sentences[i], sentence(clause))
			}
		}
	}
	if !any {
		return nil
	}
	v.Heads = append(v.Heads, "Inner MTU")
	for i, c := range order {
		for _, g := range groups {
			if m := g.main(c).InnerMTU; m > 0 {
				mtus[i] = m
			}
		}
		standings[i].Contender = c
		mtu := cell{Text: fmt.Sprint(mtus[i]), Word: "no difference"}
		if base > mtus[i] {
			mtu.Word, mtu.Worse = fmt.Sprintf("%d bytes less", base-mtus[i]), true
		}
		standings[i].Cells = append(standings[i].Cells, mtu)
		standings[i].Sentences = append(sentences[i], sentence(fmt.Sprintf("the inner MTU is %d bytes: %s", mtus[i], mtu.Word)))
	}
	v.Standings = standings
	return v
}

// head names a column with the packets it is about.
func head(name string, g *group) string {
	p := g.main(g.contenders[0]).Params
	if size, ok := p["size"]; ok {
		name += fmt.Sprintf(", %g-byte packets", size)
	}
	if flows := p["flows"]; flows > 1 {
		name += fmt.Sprintf(", %g flows", flows)
	}
	if p["family"] == 6 {
		name += ", IPv6"
	}
	return name
}

// answer says a ratio as a cell and as a clause of a sentence.
func (q question) answer(r ratio, ok bool) (cell, string) {
	if !ok {
		return cell{Text: "not measured"}, ""
	}
	if r.same() {
		return cell{Text: digits(r.median) + " ×", Interval: "(" + between(r.low, r.high) + ")", Word: "no difference"}, q.subject + " is no different (" + between(r.low, r.high) + " ×)"
	}
	by, low, high, word := 1-r.median, 1-r.high, 1-r.low, q.less
	if r.median > 1 {
		by, low, high, word = -by, r.low-1, r.high-1, q.more
	}
	amount := fmt.Sprintf("%.0f %% %s", by*100, word)
	clause := fmt.Sprintf("%s is %s (%.0f to %.0f %%)", q.subject, amount, low*100, high*100)
	if r.median >= 3 {
		amount = digits(r.median) + " times"
		clause = fmt.Sprintf("%s is %s times that of %s (%s)", q.subject, digits(r.median), baseline, between(r.low, r.high))
	}
	return cell{Text: digits(r.median) + " ×", Interval: "(" + between(r.low, r.high) + ")", Word: amount, Worse: (r.median > 1) == q.higherIsWorse}, clause
}

// find returns the first group of a test; the rest are in the sections below the verdict.
func find(groups []*group, test string) *group {
	i := slices.IndexFunc(groups, func(g *group) bool { return g.test == test })
	if i < 0 {
		return nil
	}
	return groups[i]
}

func costOf(c result.CPU) float64 { return max(c.SecondsPerGigabyte, c.NanosecondsPerPacket) }

// sentence makes one of a clause.
func sentence(clause string) string { return strings.ToUpper(clause[:1]) + clause[1:] + "." }
