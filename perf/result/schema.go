// Package result is what a run found: the form of its file, the statistics in it, and how files of before are read. Whoever shows or
// compares results needs nothing else of the lab: neither namespaces nor agents are below it.
package result

import "weft/perf/probe"

// Schema names the form of a Result. It changes when a reader of the old one would be wrong.
const Schema = "weft.lab/3"

// schemaOneHost had one host. Read understands it.
const schemaOneHost = "weft.lab/2"

// schemaWithZeros had a rate of 0 where a search found none. Read understands it.
const schemaWithZeros = "weft.lab/1"

// Baseline is the contender without overlay, which others are compared with.
const Baseline = "bare"

// New is a result before anything was measured; its lists are empty, not absent.
func New(hosts []Host, s Settings) *Result {
	return &Result{
		Schema: Schema, Hosts: hosts, Settings: s,
		Results: []Row{}, Conservation: []Balance{}, Integrity: []Integrity{}, Unsupported: []Unsupported{}, Failed: []Failure{},
	}
}

// MaxRepeat bounds the rounds of a run.
const MaxRepeat = 1000

// Result is what one run of the lab found, as its JSON file has it.
type Result struct {
	Schema       string        `json:"schema"`
	Hosts        []Host        `json:"hosts"`          // that were measured; the lab's one
	Host         *Host         `json:"host,omitempty"` // of weft.lab/2; nil after Read
	Settings     Settings      `json:"settings"`
	Results      []Row         `json:"results"`
	Conservation []Balance     `json:"conservation"`
	Integrity    []Integrity   `json:"integrity"` // null in results of before payloads were verified
	Unsupported  []Unsupported `json:"unsupported"`
	Failed       []Failure     `json:"failed"`
	Generator    []Ceiling     `json:"generator,omitempty"` // where there is a contender bare, whose wire it needs
	Details      []Detail      `json:"details,omitempty"`   // absent from results of before there were any
	Command      []string      `json:"command,omitempty"`   // that gives such a result; where it goes is left out
}

// Host is the machine's fingerprint: figures of different ones are not comparable.
type Host struct {
	Name          string `json:"name,omitempty"` // as in paths; "" where there is one
	Kernel        string `json:"kernel"`
	CPU           string `json:"cpu"`
	Cores         int    `json:"cores"`
	Mitigations   string `json:"mitigations"`
	Go            string `json:"go"`
	Weft          string `json:"weft"`
	TCPCongestion string `json:"tcp_congestion"`
}

// Settings are the run's: rows of different ones are not comparable.
type Settings struct {
	Duration float64 `json:"duration_s"`
	Repeat   int     `json:"repeat"`
	Warmup   int     `json:"warmup"`
	MTU      int     `json:"mtu"`
	Nodes    int     `json:"nodes"`
	Layout   string  `json:"layout"`
	Load     string  `json:"load,omitempty"` // what agents bounded it to
	Queues   int     `json:"queues"`
	Fault    string  `json:"fault,omitempty"` // a stage slowed on purpose
}

// Row is one figure of one contender in one test.
type Row struct {
	Contender string       `json:"contender"`
	Path      string       `json:"path,omitempty"` // from which host to which; "" where there is only one path
	Test      string       `json:"test"`
	Params    probe.Params `json:"params"`
	Metric    string       `json:"metric"`
	Unit      string       `json:"unit"`
	Samples   Samples      `json:"samples"` // in the order of the rounds; null = unanswered
	Median    Figure       `json:"median"`  // of those that are answered; null = none is
	Low       Figure       `json:"low"`     // of the 95 % rank interval of the median; below six
	High      Figure       `json:"high"`    // samples the smallest and the largest
	InnerMTU  int          `json:"inner_mtu"`
	CPU       CPU          `json:"cpu"`
}

// CPU is the processor time a test took, medians over its samples. The kinds and the processes are
// cores busy: seconds of processor time per second of the sample.
type CPU struct {
	// Whole machine, above what it did before the round, but no less than the lab's processes were charged with.
	User    float64 `json:"user"`
	System  float64 `json:"system"`
	SoftIRQ float64 `json:"softirq"`

	// What it did before the round, all kinds.
	Background float64 `json:"background,omitempty"`

	// User and system time of the lab's processes, not above anything.
	Processes map[string]float64 `json:"processes"`

	// Whole machine, all kinds, by what was carried. A test has the one that suits it.
	SecondsPerGigabyte   float64 `json:"seconds_per_gigabyte,omitempty"`   // of payload, 10^9 bytes
	NanosecondsPerPacket float64 `json:"nanoseconds_per_packet,omitempty"` // delivered

	CostSamples Samples `json:"cost_samples,omitempty"` // whichever of the two it has, by sample, in the order of the rounds; null = nothing was carried
}

// Integrity says whether what a contender delivered in a test is what was sent: all samples together, the warm-up's and the failed ones' too.
type Integrity struct {
	Contender string       `json:"contender"`
	Path      string       `json:"path,omitempty"` // from which host to which; "" where there is only one path
	Test      string       `json:"test"`
	Params    probe.Params `json:"params"`
	probe.Integrity
	OK bool `json:"ok"` // no byte is corrupt
}

// Balance is one account of packets: of a lane, or of everything between two generators.
type Balance struct {
	Contender string       `json:"contender"`
	Path      string       `json:"path,omitempty"` // from which host to which; "" where there is only one path
	Test      string       `json:"test"`
	Params    probe.Params `json:"params,omitempty"`
	*LaneBalance
	*PathBalance
	OK bool `json:"ok"` // nothing is unexplained
}

// LaneBalance: Received = Sent + Σ Drops.
type LaneBalance struct {
	Node     string            `json:"node"`
	Lane     string            `json:"lane"`
	Received uint64            `json:"received"`
	Sent     uint64            `json:"sent"`
	Drops    map[string]uint64 `json:"drops"`
}

// PathBalance: Generated + OtherDrops = Delivered + Corrupt + Σ LaneDrops + Σ KernelDrops + Unaccounted.
type PathBalance struct {
	EndToEnd    bool              `json:"end_to_end"` // true
	Generated   uint64            `json:"generated"`
	Delivered   uint64            `json:"delivered"`         // as it was sent
	Corrupt     uint64            `json:"corrupt,omitempty"` // delivered, but not as it was sent
	LaneDrops   map[string]uint64 `json:"lane_drops"`
	KernelDrops map[string]uint64 `json:"kernel_drops"`
	OtherDrops  uint64            `json:"other_drops,omitempty"` // of these, packets that were not generated
	Unaccounted int64             `json:"unaccounted"`           // negative: more drops than lost packets
}

// Unsupported is a contender this machine or this build cannot run.
type Unsupported struct {
	Contender string `json:"contender"`
	Reason    string `json:"reason"`
}

// Failure is a contender that should have run and did not, or a test it did not finish.
type Failure struct {
	Contender string `json:"contender"`
	Path      string `json:"path,omitempty"` // from which host to which; "" where there is only one path
	Test      string `json:"test,omitempty"`
	Reason    string `json:"reason"`
}
