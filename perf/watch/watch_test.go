package watch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/zap"

	"weft/perf/history"
	"weft/perf/probe"
	"weft/perf/result"
)

// found is a result with a figure of every kind; the round trip took so many microseconds.
func found(us float64) *result.Result {
	r := result.New([]result.Host{{Name: "a"}, {Name: "b"}}, result.Settings{Duration: 1, Repeat: 1, Nodes: 2})
	row := func(test, metric, unit string, v float64) {
		one := result.Row{Contender: "bare", Path: result.Path("a", "b"), Test: test, Params: probe.Params{"family": 4}, Metric: metric, Unit: unit, InnerMTU: 1500,
			Samples: result.Samples{v}, CPU: result.CPU{User: .5}}
		one.Median, one.Low, one.High = result.Summary(one.Samples)
		r.Results = append(r.Results, one)
	}
	row("tcp-stream", "throughput", "bit/s", 1e9)
	row("tcp-rr", "rate", "1/s", 9000)
	row("tcp-rr", "p50", "us", us)
	row("tcp-rr", "p99", "us", 3*us)
	row("udp-rate", "rate", "packet/s", 2e5)
	row("udp-rate", "loss", "ratio", .001)
	row("cpu-fixed", "cpu", "core", .25)
	r.Integrity = []result.Integrity{{Contender: "bare", Integrity: probe.Integrity{Verified: 1000, Corrupt: 3}}}
	return r
}

func open(t *testing.T) *history.File {
	t.Helper()
	f, err := history.Open(filepath.Join(t.TempDir(), "history.jsonl"), history.Least)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func get(t *testing.T, w *Watch, path string) (int, string) {
	t.Helper()
	answer := httptest.NewRecorder()
	w.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Code, string(body)
}

// TestLoop: runs begin at multiples of the period; what one finds is told until the next; one that fails leaves no figure behind.
func TestLoop(t *testing.T) {
	f := open(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var begun []time.Duration
		kept := 0
		ctx, cancel := context.WithCancel(t.Context())
		w := New(Config{Every: time.Minute, History: f, Version: "v1", Log: zap.NewNop(), Run: func(context.Context) (*result.Result, error) {
			begun = append(begun, time.Since(start))
			time.Sleep(10 * time.Second)
			if len(begun) == 2 {
				return nil, errors.New("the agent at b does not answer")
			}
			return found(40), nil
		}, Keep: func(*result.Result, []history.Entry) error { kept++; return nil }})
		done := make(chan struct{})
		go func() { defer close(done); w.Loop(ctx) }()

		has := func(when string, lines ...string) {
			t.Helper()
			_, page := get(t, w, "/metrics")
			for _, line := range lines {
				absent := strings.HasPrefix(line, "!")
				if strings.Contains(page, strings.TrimPrefix(line, "!")) == absent {
					t.Errorf("%s: %q in\n%s", when, line, page)
				}
			}
		}
		const bare = `contender="bare",from="a",test="`
		has("before", `weft_bench_info{version="v1"} 1`, "weft_bench_period_seconds 60", "!weft_bench_complete", "!weft_bench_measured")
		time.Sleep(20 * time.Second)
		has("after the first",
			`weft_bench_throughput_bytes_per_second{`+bare+`tcp-stream:family=4",to="b"} 1.25e+08`,
			`weft_bench_round_trip_seconds{contender="bare",from="a",percentile="50",test="tcp-rr:family=4",to="b"} 4e-05`,
			`weft_bench_round_trip_seconds{contender="bare",from="a",percentile="99",test="tcp-rr:family=4",to="b"} 0.00012`,
			`weft_bench_transactions_per_second{`+bare+`tcp-rr:family=4",to="b"} 9000`,
			`weft_bench_packets_per_second{`+bare+`udp-rate:family=4",to="b"} 200000`,
			`weft_bench_loss_ratio{`+bare+`udp-rate:family=4",to="b"} 0.001`, `weft_bench_cpu_cores{`+bare+`cpu-fixed:family=4",to="b"} 0.25`,
			`weft_bench_path_mtu_bytes{contender="bare",from="a",to="b"} 1500`, `weft_bench_measured{`+bare+`tcp-rr:family=4",to="b"} 1`,
			"weft_bench_complete 1", `weft_bench_runs_total{outcome="complete"} 1`, "weft_bench_core_seconds_total 2", "weft_bench_corrupt_bytes_total 3", "weft_bench_verified_bytes_total 1000")
		if code, _ := get(t, w, "/healthz"); code != http.StatusOK {
			t.Errorf("healthz %d", code)
		}
		time.Sleep(time.Minute)
		has("after one that failed", "weft_bench_complete 0", `weft_bench_runs_total{outcome="failed"} 1`, `weft_bench_measured{`+bare+`tcp-rr:family=4",to="b"} 0`,
			"!weft_bench_throughput_bytes_per_second{", "!weft_bench_round_trip_seconds{", "!weft_bench_path_mtu_bytes{")
		if code, body := get(t, w, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "does not answer") {
			t.Errorf("healthz %d %s", code, body)
		}
		if code, body := get(t, w, "/"); code != http.StatusOK || !strings.Contains(body, "Over time") {
			t.Errorf("the page: %d, %d bytes", code, len(body))
		}
		time.Sleep(time.Minute)
		has("after the third", "weft_bench_complete 1", `weft_bench_runs_total{outcome="complete"} 2`)
		cancel()
		<-done
		if len(begun) != 3 || begun[0] != 0 || begun[1] != time.Minute || begun[2] != 2*time.Minute || kept != 2 || len(f.Entries()) != 3 {
			t.Errorf("begun at %v, kept %d, %d in the history", begun, kept, len(f.Entries()))
		}
	})
}

// TestFirstHangs: a first run that never ends is not healthy for ever.
func TestFirstHangs(t *testing.T) {
	f := open(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := New(Config{Every: time.Minute, History: f, Log: zap.NewNop(), Run: func(ctx context.Context) (*result.Result, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		done := make(chan struct{})
		go func() { defer close(done); w.Loop(ctx) }()
		for _, c := range []struct {
			after time.Duration
			code  int
		}{{time.Minute, http.StatusOK}, {2 * time.Minute, http.StatusOK}, {time.Second, http.StatusServiceUnavailable}} {
			time.Sleep(c.after)
			if code, body := get(t, w, "/healthz"); code != c.code {
				t.Errorf("after %v more: %d %s", c.after, code, body)
			}
		}
		cancel()
		<-done
	})
}

// TestAfter: the schedule is kept to the period, and to the share of a core.
func TestAfter(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		share       float64
		took        time.Duration
		spent, want float64 // seconds
	}{
		{0, 10 * time.Second, 50, 60},
		{0, 60 * time.Second, 50, 60},
		{0, 61 * time.Second, 50, 120},
		{1, 10 * time.Second, 50, 60},
		{.5, 10 * time.Second, 50, 120},
		{.01, 10 * time.Second, 50, 5040}, // 5000 s, and then the next minute
	} {
		w := New(Config{Every: time.Minute, Share: c.share, History: open(t)})
		if got := w.after(begin, begin.Add(c.took), c.spent).Sub(begin).Seconds(); got != c.want {
			t.Errorf("%+v: after %v s", c, got)
		}
	}
}

// TestNames: Prometheus' own rules for metrics.
func TestNames(t *testing.T) {
	w := New(Config{Every: time.Minute, History: open(t), Log: zap.NewNop()})
	w.keep(history.Of(time.Now(), time.Second, found(40), nil), found(40))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w.metrics)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	for _, m := range Metrics() {
		seen := m.Name == "weft_bench_next_run_timestamp_seconds" // after the pause has begun
		for _, f := range families {
			seen = seen || f.GetName() == m.Name
		}
		if !seen {
			t.Errorf("%s is never told", m.Name)
		}
	}
}
