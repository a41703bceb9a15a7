// Package scrape answers Prometheus, for the daemon and for what measures again and again.
package scrape

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weft/internal/holder"
)

// most is how many requests are answered at a time.
const most = 3

// Listen binds the address, host:port, in the calling thread's network namespace. The error names who has the port, and no remedy.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if at, bad := netip.ParseAddrPort(address); bad == nil && errors.Is(err, syscall.EADDRINUSE) {
		if by, _ := holder.TCP(at.Port()); len(by) > 0 {
			err = fmt.Errorf("%w by %s", err, strings.Join(by, " and "))
		}
	}
	return l, err
}

// Handler answers with a collector's metrics, and those of the Go runtime and of the process.
func Handler(c prometheus.Collector) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true, MaxRequestsInFlight: most,
	})
}
