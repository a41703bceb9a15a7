package metrics

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"weft/api"
	"weft/internal/scrape"
)

// Listen binds the address, host:port, in the calling thread's network namespace.
func Listen(address string) (net.Listener, error) {
	l, err := scrape.Listen(address)
	if err != nil {
		return nil, fmt.Errorf("api.metrics: %w: give it an address of this node and a free port, or write \"\" for no metrics", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends, then closes l and lets requests under way finish.
func Serve(ctx context.Context, l net.Listener, d api.Daemon, p Pods) error {
	return api.ServeHTTP(ctx, l, Handler(d, p))
}

// Handler answers the requests listed in the package comment.
func Handler(d api.Daemon, p Pods) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", scrape.Handler(newCollector(d, p)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		d.Status() // a daemon that hangs does not answer
		page(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if s := d.Status(); !s.Ready {
			page(w, http.StatusServiceUnavailable, "not ready: "+s.Reason)
			return
		}
		page(w, http.StatusOK, "ready")
	})
	return mux
}

// page answers with one line.
func page(w http.ResponseWriter, code int, line string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprintln(w, strings.ReplaceAll(line, "\n", " ")) // a client that has gone does not matter
}

// Metric is a metric as people know it.
type Metric struct {
	Name   string
	Kind   string // counter or gauge
	Labels []string
	Help   string
}

// Metrics lists weft's own, in the order of docs/reference.md. Those of the Go runtime and of the process come besides.
func Metrics() []Metric {
	var list []Metric
	for _, d := range newCollector(nil, nil).descriptions {
		kind := "gauge"
		if d.kind == prometheus.CounterValue {
			kind = "counter"
		}
		list = append(list, Metric{d.name, kind, d.labels, d.help})
	}
	return list
}
