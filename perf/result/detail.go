package result

import "weft/perf/probe"

// Detail is what a test over a contender showed beside its figures: what curves are drawn from.
type Detail struct {
	Contender string        `json:"contender"`
	Path      string        `json:"path,omitempty"`
	Test      string        `json:"test"`
	Params    probe.Params  `json:"params"`
	Latency   []Quantile    `json:"latency,omitempty"` // ascending; of round trips
	Trials    []probe.Trial `json:"trials,omitempty"`  // of all samples, in the order of the rounds
	Stages    []Stage       `json:"stages,omitempty"`  // of userspace contenders, in the order of a packet's way
	Shapes    []probe.Shape `json:"shapes,omitempty"`  // of test mixed, all samples together
	Notes     []string      `json:"notes,omitempty"`   // what the generator said about its samples, each once
}

// Quantile is a point of the latencies' distribution: the median over the samples and its interval, as in Row.
type Quantile struct {
	Quantile float64 `json:"quantile"` // 0 to 1
	Us       float64 `json:"us"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
}

// Stage is where a packet's time goes in one lane: what one step of it took, all samples together.
// Only what a lane does itself is in it, the system calls of its ports included; waiting is not.
type Stage struct {
	Node                 string    `json:"node"`
	Lane                 string    `json:"lane"`
	Stage                string    `json:"stage"`
	Packets              uint64    `json:"packets"`                // that it was given
	NanosecondsPerPacket float64   `json:"nanoseconds_per_packet"` // of the packets that were timed
	Samples              []float64 `json:"samples,omitempty"`      // the same by sample; those that timed none are left out
}
