package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/api"
	"weft/catalog"
	"weft/internal/config"
)

// weft join writes a file that a daemon takes, and never over another one.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "password"), filepath.Join(dir, "etc", "weft.yaml")
	join := func(words ...string) (string, int) {
		_, stderr, code := weftMain(t.Context(), append([]string{"join", "--password-file", secret, "--config", file}, words...)...)
		return stderr, code
	}
	refused := func(want string, words ...string) {
		t.Helper()
		if stderr, code := join(words...); code != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("join %q: exit code %d, %s", words, code, stderr)
		}
	}
	refused("write the cluster's password there", "192.0.2.1")
	if err := os.WriteFile(secret, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(`"http://a" is not a host`, "http://a")
	refused("is not a host", "a, b]")
	refused("bits set behind its length", "a", "--network", "10.244.0.1/16")
	refused("control.mesh.expect", "a", "--expect", "-1")
	refused("encryption.cipher", "a", "--cipher", "rot13")
	if _, err := os.Stat(file); err == nil {
		t.Fatal("a file was written that was refused")
	}

	if stderr, code := join("192.0.2.1", "[2001:db8::1]:4785", "h.example", "--expect", "3", "--network", "10.9.0.0/16,fd09::/48"); code != exitDone {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	c, err := config.Load(file, catalog.Built())
	if err != nil {
		t.Fatal(err)
	}
	m := c.Control.Mesh
	if c.Control.Kind != "mesh" || strings.Join(m.Join, " ") != "192.0.2.1 [2001:db8::1]:4785 h.example" || m.Expect != 3 || len(c.Network.Prefixes) != 2 ||
		c.Encryption.PSKFile != secret || c.Encryption.Cipher != "auto" {
		t.Errorf("%+v", c)
	}
	refused("exists, and stays as it is", "192.0.2.1")

	file = filepath.Join(dir, "first.yaml")
	if stderr, code := join(); code != exitDone {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	if c, err = config.Load(file, catalog.Built()); err != nil || len(c.Control.Mesh.Join) != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// weft mesh topology joins who is known with how it is reached, and draws it.
func TestTopology(t *testing.T) {
	at := func(i byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 4786) }
	mesh := api.Mesh{Enabled: true, Node: "a", Nodes: []api.MeshNode{{Name: "a", Self: true, Live: true, Address: at(1)},
		{Name: "b", Live: true, Address: at(2), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
		{Name: "c", Address: at(3), Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}}, {Name: "d", Live: true, Address: at(4)}}}
	topology := topologyOf(mesh, []api.Peer{{Node: "b", Way: "sealed:8473", State: "up", MTU: 1400, Session: &api.Session{Established: true}}, {Node: "c", Reason: "no answer"}})
	var text strings.Builder
	topology.print(&text)
	for _, want := range []string{"a\tb\tyes\tsealed:8473 up\t-\tyes\t1400\t-", "a\tc\tno\tnone\t-\tno\t0\tno answer", "a\td\tyes\tnone\t-\tno\t0\tit has no prefix yet"} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, text.String())
		}
	}
	const picture = `graph mesh {
	layout=circo
	node [shape=box, fontname="sans-serif"]
	edge [fontname="sans-serif", fontsize=10]
	"a" [style=bold]
	"b" [label="b\n10.244.2.0/24", style=solid]
	"a" -- "b" [label="sealed:8473", style=solid, color=black]
	"c" [label="c\n10.244.3.0/24", style=dashed]
	"a" -- "c" [label="no answer", style=dashed, color=red]
	"d" [label="d", style=solid]
	"a" -- "d" [label="it has no prefix yet", style=solid, color=red]
}
`
	if got := topology.dot(); got != picture {
		t.Errorf("drawn as\n%s", got)
	}
}
