package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Whichever of the API server's two addresses answers is taken; with neither the first one's error counts.
func TestDialEither(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	good, dead := l.Addr().String(), closed.Addr().String()
	for name, c := range map[string]struct{ first, second, want string }{
		"the Service answers":     {good, dead, good},
		"before kube-proxy":       {dead, good, good},
		"nothing else is known":   {good, "", good},
		"the same":                {good, good, good},
		"neither":                 {dead, closed.Addr().String()[:len("127.0.0.1")] + ":1", ""},
		"nothing else, and dead":  {dead, "", ""},
		"one that says nothing":   {"192.0.2.1:9", good, good}, // no route, or no answer
		"neither, nothing at all": {dead, "not an address", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := dialEither(&net.Dialer{Timeout: 10 * time.Second}, func() string { return c.second })(t.Context(), "tcp", c.first)
			if c.want == "" {
				var op *net.OpError
				if !errors.As(err, &op) || op.Addr == nil || op.Addr.String() != c.first {
					t.Errorf("%v, want what %s said", err, c.first)
				}
				return
			}
			if err != nil || conn.RemoteAddr().String() != c.want {
				t.Fatalf("%v, %v", conn, err)
			}
			conn.Close()
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dialEither(&net.Dialer{}, func() string { return good })(ctx, "tcp", dead); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended: %v", err)
	}
}

func TestServerOf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for server, want := range map[string]string{
		"https://192.0.2.1:6443": "192.0.2.1:6443", "https://[2001:db8::1]:6443": "[2001:db8::1]:6443", "https://api.example": "api.example:443",
		"": "", "192.0.2.1": "",
	} {
		file := filepath.Join(dir, fmt.Sprintf("config-%x", server))
		text := fmt.Sprintf("{apiVersion: v1, kind: Config, current-context: x, clusters: [{name: c, cluster: {server: %q}}], contexts: [{name: x, context: {cluster: c, user: u}}]}", server)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ServerOf(file); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", server, got, err)
		}
	}
	if _, err := ServerOf(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestPodSubnet(t *testing.T) {
	t.Parallel()
	both := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	for text, want := range map[string][]netip.Prefix{
		"kind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16\n": both[:1],
		"networking: {podSubnet: \"10.244.0.0/16, fd00:10:244::/48\"}":                                      both,
		"networking: {podSubnet: 10.244.3.0/16}":                                                            both[:1],
		"networking: {serviceSubnet: 10.96.0.0/12}":                                                         nil,
		"networking: {podSubnet: nonsense}":                                                                 nil,
		"{":                                                                                                 nil,
		"":                                                                                                  nil,
	} {
		if got, err := podSubnet(text); !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}
