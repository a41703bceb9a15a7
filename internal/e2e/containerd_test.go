package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"weft/catalog"
	"weft/internal/api"
	"weft/internal/nettest"
)

const image = "localhost/box:1"

// ctr is the command line of a node's own containerd, with the node's own directories where `ctr run --cni` looks.
func (c *cluster) ctr(n *nettest.ClusterNode, args ...string) []string {
	script := fmt.Sprintf(`mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni && mount --bind %s /etc/cni/net.d && mount --bind %s /opt/cni/bin && mount --bind %s /var/lib/cni && exec ctr --address %s "$@"`,
		c.path(n, "net.d"), c.path(n, "bin"), c.path(n, "cache"), c.path(n, "containerd.sock"))
	return append([]string{"unshare", "--mount", "sh", "-ec", script, "ctr"}, args...)
}

// writeImage makes an image archive that holds one static binary.
func writeImage(t *testing.T, file string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "box")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "testdata/box/main.go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build box: %v: %s", err, out)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	pack := func(files map[string][]byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, content := range files {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := pack(map[string][]byte{"box": data})
	archive := pack(map[string][]byte{
		"layer.tar":     layer,
		"config.json":   fmt.Appendf(nil, `{"architecture":"`+goruntime.GOARCH+`","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(layer)),
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["` + image + `"],"Layers":["layer.tar"]}]`),
	})
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestContainerd runs containers of containerd and runc on two nodes, started in parallel: all reach each other, and
// nothing is left of them. WEFT_TEST_LONG=1: 25 on each node, in every mode.
func TestContainerd(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "containerd", "ctr", "runc", "unshare")
	many, modes := 2, []string{"tun-gso"}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		many, modes = 25, nil
		for _, m := range catalog.Modes {
			modes = append(modes, m.Name)
		}
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(weft), "weft-cni"), "weft/cnibin").CombinedOutput(); err != nil {
		t.Fatalf("build weft-cni: %v\n%s", err, out)
	}
	archive := filepath.Join(t.TempDir(), "box.tar")
	writeImage(t, archive)
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { testContainerd(t, mode, archive, many) })
	}
}

func testContainerd(t *testing.T, mode, archive string, many int) {
	c := prepare(t, mode, 4, nettest.ClusterOptions{})
	c.launch()
	type container struct {
		node *nettest.ClusterNode
		id   string
		run  *nettest.Process
		ips  []netip.Addr
	}
	var all []*container
	var before []string
	for _, n := range c.Nodes {
		r := c.install(n, "--chain", "")
		if err := os.MkdirAll(c.path(n, "cache"), 0o755); err != nil {
			t.Fatal(err)
		}
		c.writeFile(c.path(n, "containerd.toml"), fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
			c.path(n, "containerd"), c.path(n, "containerd-run"), c.path(n, "containerd.sock")))
		server := n.NS.MustStart(t, "containerd", "--config", c.path(n, "containerd.toml"))
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("containerd of %s:\n%s", n.Name, server.Output())
			}
		})
		imp := c.ctr(n, "image", "import", "--snapshotter", "native", archive)
		c.eventually("the image is there", func() error { _, err := n.NS.Run(imp[0], imp[1:]...); return err })
		first := r.box("first")
		if err := errors.Join(r.add(first), r.cni.DelNetworkList(t.Context(), r.list, first.rt)); err != nil {
			t.Fatal(err)
		}
		before = append(before, r.kernel())
	}
	for _, n := range c.Nodes {
		for i := range many {
			id := fmt.Sprintf("%s-%s-%d", mode, n.Name, i)
			cmd := c.ctr(n, "run", "--rm", "--cni", "--snapshotter", "native", image, id, "/box", id)
			all = append(all, &container{node: n, id: id, run: n.NS.MustStart(t, cmd[0], cmd[1:]...)})
		}
	}
	t.Cleanup(func() { // before the cluster goes
		for _, b := range all {
			kill := c.ctr(b.node, "task", "kill", "-s", "KILL", b.id)
			b.node.NS.Run(kill[0], kill[1:]...)
			<-b.run.Done()
		}
	})
	for _, b := range all {
		client := api.NewClient(c.path(b.node, "sock"))
		c.eventually(b.id+" is attached", func() error {
			select {
			case <-b.run.Done():
				t.Fatalf("%s ended: %s", b.id, b.run.Output())
			default:
			}
			pods, err := client.Pods(t.Context())
			for _, p := range pods {
				if p.Attached && strings.HasSuffix(p.ContainerID, b.id) {
					b.ips = p.IPs
					return nil
				}
			}
			return errors.Join(err, fmt.Errorf("not among %d pods", len(pods)))
		})
		client.Close()
	}
	seen := map[netip.Addr]bool{}
	askers := []*container{all[0]}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		askers = append(askers, all[len(all)-1])
	}
	for k, from := range askers {
		for i, to := range all {
			for j, ip := range to.ips {
				if k == 0 && seen[ip] {
					t.Errorf("%v is given twice", ip)
				}
				seen[ip] = true
				url := "http://" + netip.AddrPortFrom(ip, 8080).String()
				fetch := c.ctr(from.node, "task", "exec", "--exec-id", fmt.Sprintf("f-%d-%d-%d", k, i, j), from.id, "/box", "fetch", url)
				tries := 0
				c.eventually(from.id+" asks "+to.id, func() error {
					tries++
					fetch[len(fetch)-5] = fmt.Sprintf("f-%d-%d-%d-%d", k, i, j, tries)
					out, err := from.node.NS.Run(fetch[0], fetch[1:]...)
					if err == nil && out != to.id {
						err = fmt.Errorf("%s answered", out)
					}
					return err
				})
			}
		}
	}
	for _, b := range all {
		kill := c.ctr(b.node, "task", "kill", "-s", "KILL", b.id)
		b.node.NS.MustRun(t, kill[0], kill[1:]...)
		<-b.run.Done()
	}
	for i, n := range c.Nodes {
		r := &runtime{t: t, node: n}
		client := api.NewClient(c.path(n, "sock"))
		c.eventually("nothing is left on "+n.Name, func() error {
			pods, err := client.Pods(t.Context())
			if now := r.kernel(); err != nil || len(pods) > 0 || strip(now) != strip(before[i]) {
				return fmt.Errorf("%v, %d pods, before:\n%s\nafter:\n%s", err, len(pods), before[i], now)
			}
			return nil
		})
		client.Close()
	}
}
