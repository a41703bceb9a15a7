package watch

import (
	"github.com/prometheus/client_golang/prometheus"

	"weft/perf/history"
)

// description is one metric. Its label values are given in the order of labels.
type description struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
	desc       *prometheus.Desc
}

// collector tells at each scrape what the last run found. It implements prometheus.Collector.
type collector struct {
	watch        *Watch
	descriptions []*description
	describe
}

// describe holds the metrics by what they say; docs/reference.md has the same list.
type describe struct {
	info, runs, complete, at, took, period, next, spent, verified, corrupt, history *description
	measured, mtu, throughput, packets, transactions, trip, loss, cpu               *description
}

func newCollector(w *Watch) collector {
	c := collector{watch: w}
	add := func(kind prometheus.ValueType, name, help string, labels []string) *description {
		name = "weft_bench_" + name
		d := &description{name: name, help: help, kind: kind, labels: labels, desc: prometheus.NewDesc(name, help, labels, nil)}
		c.descriptions = append(c.descriptions, d)
		return d
	}
	count := func(name, help string, labels ...string) *description {
		return add(prometheus.CounterValue, name, help, labels)
	}
	gauge := func(name, help string, labels ...string) *description {
		return add(prometheus.GaugeValue, name, help, labels)
	}
	path := []string{"from", "to", "contender"}
	test := []string{"from", "to", "contender", "test"}
	c.describe = describe{
		info:     gauge("info", "Always 1; the labels say what measures.", "version"),
		runs:     count("runs_total", "Runs since the process began: complete, incomplete (something of it failed), failed (nothing came of it).", "outcome"),
		complete: gauge("complete", "1 while the last run found all that it was asked for."),
		at:       gauge("last_run_timestamp_seconds", "When the last run began, since 1970."),
		took:     gauge("last_run_seconds", "How long the last run took."),
		period:   gauge("period_seconds", "From the begin of a run to that of the next, unless the share of a core asks for more."),
		next:     gauge("next_run_timestamp_seconds", "When the next run begins, since 1970."),
		spent:    count("core_seconds_total", "Processor time that runs took, all hosts together, above what these did besides."),
		verified: count("verified_bytes_total", "Bytes of payload that were compared with what was sent."),
		corrupt:  count("corrupt_bytes_total", "Bytes of payload that arrived other than they were sent."),
		history:  gauge("history_bytes", "Size of the file with the history."),

		measured:     gauge("measured", "1 where the last run has figures of the test, 0 where it has none of one that was asked for; what follows is absent then.", test...),
		mtu:          gauge("path_mtu_bytes", "Largest IP packet that the path carries, as far as routers say.", path...),
		throughput:   gauge("throughput_bytes_per_second", "Payload that the receiver counted; median of the last run, as all that follows.", test...),
		packets:      gauge("packets_per_second", "Packets without loss (udp-rate), or delivered (udp-overload).", test...),
		transactions: gauge("transactions_per_second", "Round trips, or connections, one at a time.", test...),
		trip:         gauge("round_trip_seconds", "A percentile of the round trips: 50, 90, 99, 99.9.", append(test[:len(test):len(test)], "percentile")...),
		loss:         gauge("loss_ratio", "Share of the packets, or of the requests, that were lost.", test...),
		cpu:          gauge("cpu_cores", "Cores that a stream of a fixed rate kept busy, both ends together (cpu-fixed).", test...),
	}
	return c
}

// Describe implements prometheus.Collector.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descriptions {
		to <- d.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(to chan<- prometheus.Metric) {
	send := func(d *description, value float64, labels ...string) {
		m, err := prometheus.NewConstMetric(d.desc, d.kind, value, labels...)
		if err != nil { // a name that is not UTF-8
			m = prometheus.NewInvalidMetric(d.desc, err)
		}
		to <- m
	}
	w := c.watch
	now := w.state()
	last, n := now.newest, now.counts
	send(c.info, 1, w.cfg.Version)
	send(c.runs, float64(n.complete), "complete")
	send(c.runs, float64(n.incomplete), "incomplete")
	send(c.runs, float64(n.failed), "failed")
	send(c.period, w.cfg.Every.Seconds())
	send(c.spent, n.spent)
	send(c.verified, float64(n.verified))
	send(c.corrupt, float64(n.corrupt))
	send(c.history, float64(now.size))
	if !now.next.IsZero() {
		send(c.next, float64(now.next.UnixMilli())/1e3)
	}
	if last == nil {
		return
	}
	send(c.complete, truth(last.Error == "" && len(last.Failed) == 0))
	send(c.at, float64(last.At.UnixMilli())/1e3)
	send(c.took, last.Seconds)
	known := map[series]bool{}
	paths := map[series]bool{}
	for _, f := range last.Figures {
		s := seriesOf(f.Path, f.Contender, f.Selection())
		if p := (series{s.From, s.To, s.Contender, ""}); f.InnerMTU > 0 && !paths[p] {
			paths[p] = true
			send(c.mtu, float64(f.InnerMTU), s.From, s.To, s.Contender)
		}
		if f.Median.Known() {
			known[s] = true
			c.figure(send, f, s)
		}
	}
	for _, s := range now.seen {
		send(c.measured, truth(known[s]), s.From, s.To, s.Contender, s.Test)
	}
}

// figure sends one figure under the name of what it is.
func (c collector) figure(send func(*description, float64, ...string), f history.Figure, s series) {
	labels := []string{s.From, s.To, s.Contender, s.Test}
	value := float64(f.Median)
	percentiles := map[string]string{"p50": "50", "p90": "90", "p99": "99", "p999": "99.9"}
	switch {
	case f.Metric == "throughput":
		send(c.throughput, value/8, labels...)
	case f.Metric == "rate" && f.Unit == "packet/s":
		send(c.packets, value, labels...)
	case f.Metric == "rate":
		send(c.transactions, value, labels...)
	case f.Metric == "loss":
		send(c.loss, value, labels...)
	case f.Metric == "cpu":
		send(c.cpu, value, labels...)
	case percentiles[f.Metric] != "" && f.Unit == "us":
		send(c.trip, value/1e6, append(labels, percentiles[f.Metric])...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Metric is a metric as people know it.
type Metric struct {
	Name   string
	Kind   string // counter or gauge
	Labels []string
	Help   string
}

// Metrics lists them, in the order of docs/reference.md.
func Metrics() []Metric {
	var list []Metric
	for _, d := range newCollector(nil).descriptions {
		kind := "gauge"
		if d.kind == prometheus.CounterValue {
			kind = "counter"
		}
		list = append(list, Metric{d.name, kind, d.labels, d.help})
	}
	return list
}
