package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"weft/api"
	"weft/catalog"
	"weft/catalog/mode"
	"weft/internal/nettest"
)

const (
	unitFile = "../../deploy/systemd/weft.service"
	unitXDP  = "../../deploy/systemd/weft.service.d/xdp.conf"
)

// setting returns all values of a key in unit files, split into words, as systemd joins them.
func setting(t *testing.T, key string, files ...string) (words []string) {
	t.Helper()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^`+key+`=(.*)$`).FindAllStringSubmatch(string(text), -1) {
			words = append(words, strings.Fields(m[1])...)
		}
	}
	return words
}

// TestUnit: systemd understands every line of the unit, and finds it well locked up.
func TestUnit(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "systemd-analyze")
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	installed := strings.Replace(string(text), "ExecStart=/usr/local/bin/weft ", "ExecStart="+weft+" ", 1)
	if installed == string(text) {
		t.Fatal("the unit starts something else")
	}
	for name, files := range map[string][]string{"as it is": nil, "for xdp": {unitXDP}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			unit := filepath.Join(dir, "weft.service")
			write(t, unit, installed)
			for _, f := range files {
				more, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, "weft.service.d", filepath.Base(f)), string(more))
			}
			if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("verify: %v\n%s", err, out)
			}
			// 4 of 10, what systemd calls OK: to enter pods' namespaces takes rights that weigh much.
			if out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=40", unit).CombinedOutput(); err != nil {
				t.Errorf("security: %v\n%s", err, out)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestUnitCapabilities: with no more than what the unit grants, every mode carries traffic and repairs what it made.
func TestUnitCapabilities(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "setpriv")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			files := []string{unitFile}
			bounds := "-all"
			if m.Uses(mode.AFXDP) {
				files = append(files, unitXDP)
				bounds += ",+ipc_lock" // stands for LimitMEMLOCK=infinity, which not everybody may raise
			}
			for _, c := range setting(t, "CapabilityBoundingSet", files...) {
				bounds += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
			}
			c := prepare(t, m.Name, 4, nettest.ClusterOptions{})
			c.prefix = func(*nettest.ClusterNode) []string {
				return []string{"setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=" + bounds}
			}
			for _, n := range c.Nodes { // so that the daemon has to turn it on
				n.NS.MustRun(t, "sysctl", "-q", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
			}
			c.launch()
			c.Nodes[0].NS.MustRun(t, "ip", "route", "flush", "proto", "87")
			c.allReach()
			n, pod := c.Nodes[0], nettest.New(t)
			client := api.NewClient(c.path(n, "sock"))
			defer client.Close()
			a, err := client.Attach(t.Context(), api.AttachRequest{ContainerID: "c", IfName: "eth0", Netns: pod.Path(), Network: "weft"})
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range a.IPs {
				c.eventually("the node reaches its pod", func() error { return ping(n.NS, ip.Address.Addr()) })
			}
		})
	}
}

// manager is a service manager's end of NOTIFY_SOCKET.
type manager struct {
	mu    sync.Mutex
	heard []string
}

func newManager(t *testing.T, socket string) *manager {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{}
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.heard = append(m.heard, string(buf[:n]))
			m.mu.Unlock()
		}
	})
	t.Cleanup(func() { c.Close(); done.Wait() })
	return m
}

// after finds a message with the prefix behind the first from ones, and returns where the next begins.
func (m *manager) after(from int, prefix string) (next int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, h := range m.heard[from:] {
		if strings.HasPrefix(h, prefix) {
			return from + i + 1, nil
		}
	}
	return from, fmt.Errorf("no %q in %q", prefix, m.heard[from:])
}

// TestNotify: the daemon tells systemd when it is ready, reloads and ends, and feeds the watchdog.
func TestNotify(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "env")
	c := prepare(t, "tun", 4, nettest.ClusterOptions{})
	a := c.Nodes[0]
	socket := filepath.Join(c.dir, "notify")
	m := newManager(t, socket)
	c.prefix = func(n *nettest.ClusterNode) []string {
		if n != a {
			return nil
		}
		return []string{"env", "NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=100000"}
	}
	c.launch()
	at := 0
	expect := func(prefix string) {
		t.Helper()
		c.eventually("systemd hears "+prefix, func() (err error) { at, err = m.after(at, prefix); return err })
	}
	expect("READY=1\nSTATUS=ready: mode tun, 2 nodes, inner MTU 1450")
	expect("STATUS=ready: mode tun, 2 nodes, inner MTU 1450\nWATCHDOG=1")

	c.daemons[a.Name].Signal(syscall.SIGHUP)
	expect("RELOADING=1\nMONOTONIC_USEC=")
	expect("READY=1\nSTATUS=ready")
	if strings.Contains(c.daemons[a.Name].Output(), "the configuration has changed") {
		t.Error("an unchanged configuration has changed")
	}
	file := c.path(a, "weft.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for change, says := range map[string]string{"node:\nmode: nonsense\n": "the configuration has mistakes", strings.Replace(string(text), "mode: tun", "mode: tap", 1): `"keys":["mode"]`} {
		c.writeFile(file, change)
		c.daemons[a.Name].Signal(syscall.SIGHUP)
		expect("RELOADING=1\n")
		expect("READY=1\n")
		if out := c.daemons[a.Name].Output(); !strings.Contains(out, says) {
			t.Errorf("no %q in\n%s", says, out)
		}
	}
	c.allReach() // as before

	c.stop(a, syscall.SIGTERM)
	expect("STOPPING=1")
	m.mu.Lock()
	defer m.mu.Unlock()
	ready := slices.IndexFunc(m.heard, func(h string) bool { return strings.HasPrefix(h, "READY=1") })
	for _, h := range m.heard[:ready] {
		if !strings.HasPrefix(h, "STATUS=") {
			t.Errorf("before READY: %q", h)
		}
	}
}

// TestNotifyWaits: a daemon that cannot program its path does not say that it is ready, and says why.
func TestNotifyWaits(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	c := prepare(t, "tun", 4, nettest.ClusterOptions{})
	a := c.Nodes[0]
	socket := filepath.Join(c.dir, "notify")
	m := newManager(t, socket)
	c.prefix = func(*nettest.ClusterNode) []string {
		return []string{"env", "NOTIFY_SOCKET=" + socket, "WATCHDOG_USEC=100000"}
	}
	a.NS.MustRun(t, "ip", "link", "add", "weft0", "type", "veth", "peer", "name", "blocker") // what the TUN would be called
	t.Cleanup(func() {
		for _, p := range c.daemons {
			p.Kill()
		}
	})
	c.writeNodes()
	c.start(a)
	c.eventually("systemd hears why", func() error { _, err := m.after(0, "STATUS=not ready: tun: "); return err })
	if _, err := m.after(0, "READY=1"); err == nil {
		t.Error("ready although there is no path")
	}
	a.NS.MustRun(t, "ip", "link", "del", "weft0")
	c.eventually("it is ready once it can", func() error { _, err := m.after(0, "READY=1\nSTATUS=ready"); return err })
}
