package kubernetes

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// DirectFile is where `weft cni install --kubelet-conf` writes down the address of the API server that this node's kubelet
// asks: HOST:PORT and a line end.
const DirectFile = "/run/weft/apiserver"

// headStart is how long the Service's address has for itself before the server's own is tried beside it.
const headStart = 300 * time.Millisecond

// ServerOf reads the API server's HOST:PORT from a kubeconfig.
func ServerOf(kubeconfig string) (string, error) {
	quiet()
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return "", fmt.Errorf("kubernetes: read %s: %w", kubeconfig, err)
	}
	at := config.Contexts[config.CurrentContext]
	if at == nil || config.Clusters[at.Cluster] == nil {
		return "", fmt.Errorf("kubernetes: %s names no cluster in its current context", kubeconfig)
	}
	u, err := url.Parse(config.Clusters[at.Cluster].Server)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("kubernetes: %s: server %q is not a URL with a host", kubeconfig, config.Clusters[at.Cluster].Server)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}

// Servers are the addresses, HOST:PORT, at which the API server may be asked with these settings, as far as they can be read.
func Servers(s Settings) (list []string) {
	add := func(at string) {
		if at != "" && !slices.Contains(list, at) {
			list = append(list, at)
		}
	}
	if s.Kubeconfig != "" {
		if at, err := ServerOf(s.Kubeconfig); err == nil {
			add(at)
		}
		add(s.Server)
		return list
	}
	if host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"); host != "" && port != "" { // as rest.InClusterConfig
		add(net.JoinHostPort(host, port))
	}
	add(direct(s.Server, DirectFile))
	return list
}

// direct is the API server's own address, "" where none is known: what the configuration says, else what is written down.
func direct(configured, file string) string {
	if configured != "" {
		return configured
	}
	if b, err := os.ReadFile(file); err == nil {
		return strings.TrimSpace(string(b))
	}
	return ""
}

// dialEither connects to the address that is asked for, or to another one of the same server, whichever answers first; the
// second begins a little later. A pod knows the API server by its Service's address, which leads nowhere before kube-proxy
// runs, and there may be none. Which of them it was makes no difference to TLS: the certificate has to be the Service's.
func dialEither(d *net.Dialer, other func() string) func(ctx context.Context, network, address string) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		second := other()
		if second == "" || second == address {
			return d.DialContext(ctx, network, address)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		done := make(chan dialled)
		try := func(address string) {
			c, err := d.DialContext(ctx, network, address)
			select {
			case done <- dialled{c, err}:
			case <-ctx.Done():
				if err == nil {
					c.Close()
				}
			}
		}
		go try(address)
		waiting, later := 1, time.After(headStart)
		var first error
		for {
			select {
			case r := <-done:
				waiting--
				switch {
				case r.err == nil:
					return r.conn, nil
				case first == nil:
					first = r.err
				}
				if later == nil && waiting == 0 {
					return nil, first
				}
			case <-later:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if later != nil {
				later, waiting = nil, waiting+1
				go try(second)
			}
		}
	}
}
