package result

import "weft/perf/probe"

// Ceiling is what the generators do by themselves in a test: from node to node over the bare wire, in the nodes' own namespaces, without
// pods, routing or overlay. A contender that comes near it may be better than shown.
type Ceiling struct {
	Test    string       `json:"test"`
	Params  probe.Params `json:"params"`
	Metric  string       `json:"metric"` // the test's main one
	Unit    string       `json:"unit"`
	Samples Samples      `json:"samples"` // null = unanswered, as in Row
	Median  Figure       `json:"median"`
	Low     Figure       `json:"low"`
	High    Figure       `json:"high"`
}
