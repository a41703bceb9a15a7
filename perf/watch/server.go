package watch

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"weft/api"
	"weft/internal/scrape"
	"weft/perf/report"
)

// Listen binds the address, host:port.
func Listen(address string) (net.Listener, error) {
	l, err := scrape.Listen(address)
	if err != nil {
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
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", scrape.Handler(w.metrics))
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
