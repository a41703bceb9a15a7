package watch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/api"
	"weft/internal/holder"
	"weft/perf/report"
)

// mostScrapes is how many requests for metrics are answered at a time.
const mostScrapes = 3

// Listen binds the address, host:port.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		if at, bad := netip.ParseAddrPort(address); bad == nil && errors.Is(err, syscall.EADDRINUSE) {
			if by, _ := holder.TCP(at.Port()); len(by) > 0 {
				err = fmt.Errorf("%w by %s", err, strings.Join(by, " and "))
			}
		}
		return nil, fmt.Errorf("--metrics: %w: give an address of this host and a free port, or \"\" for no metrics", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends.
func (w *Watch) Serve(ctx context.Context, l net.Listener) error {
	return api.ServeHTTP(ctx, l, w.Handler())
}

// Handler answers the requests listed in the package comment.
func (w *Watch) Handler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(w.metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true, MaxRequestsInFlight: mostScrapes,
	}))
	mux.HandleFunc("GET /healthz", func(to http.ResponseWriter, _ *http.Request) {
		to.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := w.late(time.Now()); err != nil {
			to.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(to, strings.ReplaceAll(err.Error(), "\n", " "))
			return
		}
		fmt.Fprintln(to, "ok")
	})
	mux.HandleFunc("GET /{$}", func(to http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		last, list := w.last, w.past
		w.mu.Unlock()
		if last == nil {
			http.Error(to, "no run has ended yet", http.StatusServiceUnavailable)
			return
		}
		to.Header().Set("Content-Type", "text/html; charset=utf-8")
		to.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		_ = report.HTML(to, last, list...) // a client that has gone does not matter
	})
	return mux
}
