package kubernetes_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"weft/control"
	"weft/control/controltest"
	"weft/control/kubernetes"
	"weft/internal/nettest"
)

// A kubeconfig that others could use to do what this node may is refused, and so is one that others could have written.
func TestKubeconfigIsSecret(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(keyFile, []byte("x"), 0o600))
	must(t, os.Chmod(keyFile, 0o644))
	for name, c := range map[string]struct {
		user string
		mode fs.FileMode
		uid  int
		says string
	}{
		"token, for all":            {"token: abc", 0o644, 0, "mode 0644, so that others may read it: chmod 600"},
		"key, for all":              {"client-key-data: YQ==", 0o644, 0, "mode 0644, so that others may read it: chmod 600"},
		"password, for the group":   {"username: u, password: abc", 0o640, 0, "mode 0640, so that others may read it: chmod 600"},
		"no secret, to be changed":  {"", 0o664, 0, "mode 0664, so that others may change it: chmod 600"},
		"somebody else's":           {"", 0o600, 65534, "belongs to user 65534"},
		"a key file, for all":       {"client-certificate: key.pem, client-key: key.pem", 0o600, 0, keyFile + " has mode 0644"},
		"a token, for root alone":   {"token: abc", 0o600, 0, ""},
		"no secret in it, for all":  {"", 0o644, 0, ""},
		"names a token file, to us": {"tokenFile: key.pem", 0o644, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			must(t, os.WriteFile(file, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "https://127.0.0.1:1"}}], contexts: [{name: x, context: {cluster: x, user: x}}], users: [{name: x, user: {%s}}]}`, c.user), 0o600))
			must(t, os.Chmod(file, c.mode))
			must(t, os.Chown(file, c.uid, 0))
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // nothing is asked of a server
			src := kubernetes.New(kubernetes.Settings{Kubeconfig: file, Schema: kubernetes.SchemaWeft, Network: controltest.Network(), VNI: 1, Log: zap.NewNop()})
			src.Announce(node("a", "192.0.2.1"))
			err := src.Run(ctx, func(control.State) {})
			if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "control.kubernetes.kubeconfig")) {
				t.Errorf("%v; want %q", err, c.says)
			}
		})
	}
}
