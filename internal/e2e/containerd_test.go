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
	"time"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

const image = "localhost/box:1"

// asRuntime runs a command with the node's own directories where container runtimes look.
func (c *cluster) asRuntime(n *nettest.ClusterNode, cmd ...string) []string {
	script := fmt.Sprintf(`mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni && mount --bind %s /etc/cni/net.d && mount --bind %s /opt/cni/bin && mount --bind %s /var/lib/cni && exec "$@"`,
		c.path(n, "net.d"), c.path(n, "bin"), c.path(n, "cache"))
	return append([]string{"unshare", "--mount", "sh", "-ec", script, "sh"}, cmd...)
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
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "containerd", "ctr", "runc", "unshare", "nft")
	many, modes := 2, []string{"tun-gso"}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		many, modes = 25, nil
		for _, m := range catalog.Modes {
			modes = append(modes, m.Name)
		}
	}
	buildPlugin(t)
	archive := filepath.Join(t.TempDir(), "box.tar")
	writeImage(t, archive)
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { testContainerd(t, mode, archive, many) })
	}
}

// container is one of containerd.
type container struct {
	node *nettest.ClusterNode
	id   string
	run  *nettest.Process
	ips  []netip.Addr
}

func testContainerd(t *testing.T, mode, archive string, many int) {
	c := prepare(t, mode, 4, nettest.ClusterOptions{})
	c.launch()
	var all []*container
	var nodes []*runtime
	var before []map[string]bool
	for _, n := range c.Nodes {
		r := c.install(n, "--chain", "")
		c.writeFile(c.path(n, "containerd.toml"), fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
			c.path(n, "containerd"), c.path(n, "containerd-run"), c.path(n, "containerd.sock")))
		server := n.NS.MustStart(t, "containerd", "--config", c.path(n, "containerd.toml"))
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("containerd of %s:\n%s", n.Name, server.Output())
			}
		})
		c.eventually("the image is there", func() error {
			_, err := n.NS.Run("ctr", "--address", c.path(n, "containerd.sock"), "image", "import", "--snapshotter", "native", archive)
			return err
		})
		// Once in and out, so that what stays for good (firewall) is there before the count.
		first := r.box("first")
		if err := errors.Join(r.add(first), r.del(first)); err != nil {
			t.Fatal(err)
		}
		nodes, before = append(nodes, r), append(before, r.traces())
	}
	for _, n := range c.Nodes {
		for i := range many {
			id := fmt.Sprintf("%s-%s-%d", mode, n.Name, i)
			cmd := c.asRuntime(n, "ctr", "--address", c.path(n, "containerd.sock"), "run", "--rm", "--cni", "--snapshotter", "native", image, id, "/box", id)
			all = append(all, &container{node: n, id: id, run: n.NS.MustStart(t, cmd[0], cmd[1:]...)})
		}
	}
	t.Cleanup(func() { // before the cluster goes
		for _, b := range all {
			c.kill(b)
		}
	})
	owner := map[netip.Addr]*container{}
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
		for _, ip := range b.ips {
			if o := owner[ip]; o != nil {
				t.Errorf("%v is given to %s and to %s", ip, o.id, b.id)
			}
			owner[ip] = b
		}
	}
	reached := map[[2]*container]int{}
	for _, b := range all {
		for to, count := range c.askAll(b, owner) {
			reached[[2]*container{b, to}] += count
		}
	}
	a, z := all[0], all[len(all)-1]
	t.Logf("%s on %s (%v) has asked http://%s:8080 on %s over the overlay: %d answers, %q", a.id, a.node.Name, a.ips[0], z.ips[0], z.node.Name, reached[[2]*container{a, z}], z.id)
	pairs := 0
	for _, families := range reached {
		if families == 2 {
			pairs++
		}
	}
	if want := len(all) * (len(all) - 1); pairs != want {
		t.Errorf("%d pairs reach each other over IPv4 and IPv6, want %d", pairs, want)
	}
	for _, b := range all {
		c.kill(b)
	}
	for i, r := range nodes {
		client := api.NewClient(c.path(r.node, "sock"))
		c.eventually("nothing is left on "+r.node.Name, func() error {
			pods, err := client.Pods(t.Context())
			if err != nil || len(pods) > 0 {
				return fmt.Errorf("%d pods, %w", len(pods), err)
			}
			return r.clean(before[i])
		})
		client.Close()
	}
	t.Logf("%s: %d containers, %d pairs reach each other over IPv4 and IPv6, %d addresses, each given once; left of %d traces on the nodes: 0 links, addresses, routes, rules and files",
		mode, len(all), pairs, len(owner), len(before[0])+len(before[1]))
}

// askAll has a container ask all others, at each of their addresses, for their names. It returns at how many addresses each answers.
func (c *cluster) askAll(from *container, owner map[netip.Addr]*container) map[*container]int {
	cmd := []string{"--address", c.path(from.node, "containerd.sock"), "task", "exec", "--exec-id", "ask", from.id, "/box", "ask"}
	at := map[string]*container{}
	for ip, to := range owner {
		if to != from {
			url := "http://" + netip.AddrPortFrom(ip, 8080).String()
			at[url] = to
			cmd = append(cmd, url)
		}
	}
	out, err := from.node.NS.Run("ctr", cmd...)
	if err != nil {
		c.t.Errorf("%s asks: %v: %s", from.id, err, out)
	}
	answers := map[*container]int{}
	for line := range strings.Lines(out) {
		url, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		if to := at[url]; to == nil || to.id != name {
			c.t.Errorf("%s asks at %s: %s", from.id, url, name)
			continue
		}
		answers[at[url]]++
	}
	return answers
}

// kill ends a container's process; containerd then deletes it and has the plugin detach it.
func (c *cluster) kill(b *container) {
	b.node.NS.Run("ctr", "--address", c.path(b.node, "containerd.sock"), "task", "kill", "-s", "KILL", b.id) // it may have ended
	select {
	case <-b.run.Done():
	case <-time.After(patience):
		c.t.Errorf("%s does not end: %s", b.id, b.run.Output())
	}
}
