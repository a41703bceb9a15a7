package etcd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/control"
	"weft/control/etcd"
)

func withLease(id clientv3.LeaseID) clientv3.OpOption { return clientv3.WithLease(id) }

// Users and roles of etcd: what is granted works, through a restart of the server as well, which
// forgets all tokens; what is not is said.
func TestAuth(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ctx := t.Context()
	do := func(_ any, err error) { t.Helper(); must(t, err) }
	do(s.client.UserAdd(ctx, "root", "secret"))
	do(s.client.UserGrantRole(ctx, "root", "root"))
	do(s.client.RoleAdd(ctx, "weft"))
	do(s.client.RoleGrantPermission(ctx, "weft", "/weft/", clientv3.GetPrefixRangeEnd("/weft/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	do(s.client.UserAdd(ctx, "node", "pass word"))
	do(s.client.UserGrantRole(ctx, "node", "weft"))
	do(s.client.UserAdd(ctx, "guest", "guest"))
	do(s.client.AuthEnable(ctx))

	for name, c := range map[string]struct{ user, password, want string }{
		"wrong password": {"node", "wrong", "refuses this node"},
		"no permission":  {"guest", "guest", "grant user \"guest\" read and write below /weft"},
	} {
		t.Run(name, func(t *testing.T) {
			src := s.of("a", user(t, c.user, c.password))
			src.Announce(node("a", "192.0.2.1"))
			err := src.Run(ctx, func(control.State) {})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	a := run(t, s.of("a", user(t, "node", "pass word")), node("a", "192.0.2.1"))
	a.await("joined", joined(0))
	s.kill()
	a.await("alarm", problem("etcd at"))
	s.start()
	s.await()
	a.await("all well", both(joined(0), clean))
	b := run(t, s.of("b", user(t, "node", "pass word")), node("b", "192.0.2.2"))
	b.await("both", joined(1))
	a.await("both", both(joined(1), clean))
}

func user(t *testing.T, name, password string) func(*etcd.Settings) {
	file := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	return func(set *etcd.Settings) { set.Username, set.PasswordFile = name, file }
}

// TLS that does not fit is said with its reason.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	other := t.TempDir()
	certificates(t, other, s.url)
	key, err := os.ReadFile(s.file("key.pem"))
	must(t, err)
	shared := filepath.Join(other, "shared.pem")
	must(t, os.WriteFile(shared, key, 0o600))
	must(t, os.Chmod(shared, 0o640))
	for name, c := range map[string]struct {
		change func(*etcd.Settings)
		want   string
	}{
		"no such file":   {func(set *etcd.Settings) { set.CAFile = "/nonexistent" }, "control.etcd.ca_file"},
		"not PEM":        {func(set *etcd.Settings) { set.CAFile = os.DevNull }, "holds no certificate in PEM"},
		"key of another": {func(set *etcd.Settings) { set.KeyFile = filepath.Join(other, "key.pem") }, "control.etcd.cert_file, key_file"},
		"key not secret": {func(set *etcd.Settings) { set.KeyFile = shared }, "mode 0640, so that others may read it: chmod 600 " + shared},
		"password not secret": {func(set *etcd.Settings) { set.Username, set.PasswordFile = "root", shared },
			"control.etcd.password_file: it is no secret: " + shared + " has mode 0640"},
		"unknown CA":     {func(set *etcd.Settings) { set.CAFile = filepath.Join(other, "ca.pem") }, "certificate signed by unknown authority"},
		"no certificate": {func(set *etcd.Settings) { set.CertFile, set.KeyFile = "", "" }, "etcd at https://"},
		"not TLS":        {func(set *etcd.Settings) { set.Endpoints = []string{"http" + s.url[len("https"):]} }, "etcd at http://"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := s.of("a", c.change).Network(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
