package kubernetes

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestServers: wherever the API server may be asked, is known.
func TestServers(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte("{apiVersion: v1, kind: Config, current-context: x, clusters: [{name: x, cluster: {server: \"https://192.0.2.1:8443\"}}], contexts: [{name: x, context: {cluster: x}}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set  Settings
		want []string
	}{
		{Settings{Kubeconfig: file}, []string{"192.0.2.1:8443"}},
		{Settings{Kubeconfig: file, Server: "192.0.2.2:9443"}, []string{"192.0.2.1:8443", "192.0.2.2:9443"}},
		{Settings{Kubeconfig: file + ".none", Server: "192.0.2.2:9443"}, []string{"192.0.2.2:9443"}},
		{Settings{Server: "192.0.2.2:9443"}, []string{"10.96.0.1:443", "192.0.2.2:9443"}},
	} {
		if got := Servers(c.set); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.set, got, c.want)
		}
	}
}
