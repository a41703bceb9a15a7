package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weft/api"
	"weft/internal/nettest"
)

// TestMesh: three nodes know one password and the first one's address, and there is no store. They find each other, take prefixes, and their pods reach
// each other. One that is killed keeps its pod's traffic where the kernel forwards, and its prefixes when it starts again. With WEFT_TEST_LONG=1 in a mode that
// the kernel forwards in, too, and one that is gone is forgotten.
func TestMesh(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	modes := []string{"tun-gso"}
	if long() {
		modes = append(modes, "vxlan")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{Nodes: 3})
			if kernelForwards(mode) {
				c.password("none")
			} else {
				c.password("auto")
			}
			c.iface = c.Nodes[0].Iface // there is no default route to find it by
			c.control = fmt.Sprintf("{kind: mesh, mesh: {join: [%q], expect: 3}}", c.Nodes[0].Underlay[0])
			c.startAll()
			c.eventually("all know and hear all", func() error {
				var errs []error
				for _, n := range c.Nodes {
					errs = append(errs, c.meshed(n, 3, 3))
				}
				return errors.Join(errs...)
			})
			m := &meshPods{cluster: c}
			for _, n := range c.Nodes {
				c.ready(n)
				m.attach(n, "first")
			}
			m.reach("after the start", c.Nodes)
			a, b, last := c.Nodes[0], c.Nodes[1], c.Nodes[2]
			for _, n := range c.Nodes {
				for _, p := range c.peers(n) {
					if sealed := p.Session != nil && p.Session.Established; sealed == kernelForwards(mode) {
						t.Errorf("%s reaches %s sealed: %v", n.Name, p.Node, sealed)
					}
				}
			}

			had := m.prefixes(last)
			c.stop(last, syscall.SIGKILL)
			c.eventually("the others miss it", func() error { return errors.Join(c.meshed(a, 3, 2), c.meshed(b, 3, 2)) })
			if kernelForwards(mode) {
				m.reach("while a daemon is away", c.Nodes)
			}
			c.start(last)
			c.ready(last)
			if now := m.prefixes(last); len(had) != 2 || !slices.Equal(now, had) {
				t.Errorf("%s had %v, and has %v after a restart", last.Name, had, now)
			}
			m.reach("after a restart", c.Nodes)
			c.eventually("all hear it again", func() error { return errors.Join(c.meshed(a, 3, 3), c.meshed(b, 3, 3)) })

			if !long() {
				return
			}
			forget := func(n, gone *nettest.ClusterNode) (string, error) {
				out, err := exec.Command(weft, "forget", gone.Name, "--socket", c.path(n, "sock")).CombinedOutput()
				return string(out), err
			}
			if out, err := forget(a, b); err == nil || !strings.Contains(out, b.Name+" is heard at "+b.Underlay[0].String()) {
				t.Errorf("a node that is heard was forgotten: %v, %s", err, out)
			}
			c.stop(last, syscall.SIGTERM)
			c.eventually("the others miss it again", func() error { return errors.Join(c.meshed(a, 3, 2), c.meshed(b, 3, 2)) })
			if out, err := forget(b, last); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			c.eventually("it is forgotten everywhere", func() error { return errors.Join(c.meshed(a, 2, 2), c.meshed(b, 2, 2)) })
			var nodes []api.Node
			c.eventually("its prefixes lead nowhere", func() error {
				if err := c.ask(a, &nodes, "nodes"); err != nil || len(nodes) != 2 {
					return fmt.Errorf("%+v, %w", nodes, err)
				}
				return nil
			})
		})
	}
}

// TestMeshPartition: five nodes are cut into three and two. Pods that are attached meanwhile reach the others of their side, and when the cut is mended all pods
// reach all; nothing is started again, and nobody's prefixes have changed.
func TestMeshPartition(t *testing.T) {
	nettest.RequireLong(t, "it takes half a minute, and TestPartition in control/mesh cuts a mesh in memory")
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "nft")
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{Nodes: 5})
	c.password("none")
	c.iface = c.Nodes[0].Iface // there is no default route to find it by
	c.control = fmt.Sprintf("{kind: mesh, mesh: {join: [%q, %q], expect: 5}}", c.Nodes[0].Underlay[0], c.Nodes[4].Underlay[0])
	c.startAll()
	hear := func(what string, known int, sides ...[]*nettest.ClusterNode) {
		t.Helper()
		c.eventually(what, func() error {
			var errs []error
			for _, side := range sides {
				for _, n := range side {
					errs = append(errs, c.meshed(n, known, len(side)))
				}
			}
			return errors.Join(errs...)
		})
	}
	hear("all know and hear all", 5, c.Nodes)
	m := &meshPods{cluster: c}
	had := map[string][]netip.Prefix{}
	for _, n := range c.Nodes {
		c.ready(n)
		m.attach(n, "first")
		had[n.Name] = m.prefixes(n)
	}
	m.reach("after the start", c.Nodes)

	large, small := c.Nodes[:3], c.Nodes[3:]
	for _, n := range large {
		n.NS.MustRun(t, "nft", fmt.Sprintf("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in ip saddr { %v, %v } drop", small[0].Underlay[0], small[1].Underlay[0]))
	}
	hear("each side hears itself", 5, large, small)
	for _, n := range c.Nodes {
		m.attach(n, "second")
	}
	m.reach("on the side of three", large)
	m.reach("on the side of two", small)
	for _, n := range large {
		n.NS.MustRun(t, "nft", "delete table inet cut")
	}
	hear("all hear all again", 5, c.Nodes)
	m.reach("when the cut is mended", c.Nodes)
	for _, n := range c.Nodes {
		if now := m.prefixes(n); !slices.Equal(now, had[n.Name]) {
			t.Errorf("%s had %v, and has %v", n.Name, had[n.Name], now)
		}
	}
	t.Logf("%d pods of 5 nodes reach each other after a cut into 3 and 2", len(m.pods))
}

// TestMeshPassword: a node with another password is none of the cluster, harms nobody, and is told so in a plain sentence; so are the others.
func TestMeshPassword(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{Nodes: 2})
	a, b := c.Nodes[0], c.Nodes[1]
	c.encryption = func(n *nettest.ClusterNode) string {
		c.writeFile(c.path(n, "psk"), "the password of "+n.Name+"\n")
		return fmt.Sprintf("encryption: {psk_file: %s}", c.path(n, "psk"))
	}
	c.iface = a.Iface
	c.control = fmt.Sprintf("{kind: mesh, mesh: {join: [%q]}}", a.Underlay[0])
	c.absent[b.Name] = true // it is not to become ready
	c.startAll()
	c.start(b)
	tells := func(n *nettest.ClusterNode, text string) {
		t.Helper()
		c.eventually(n.Name+" tells: "+text, func() error {
			var s api.Status
			if err := c.ask(n, &s, "status"); err != nil {
				return err
			}
			said, err := json.Marshal(s.Problems)
			if err == nil && !strings.Contains(string(said), text) {
				err = fmt.Errorf("it tells %s", said)
			}
			return err
		})
	}
	tells(b, "it has another password")
	tells(a, b.Underlay[0].String()+" speaks to the mesh and is not taken: it has another password")
	c.ready(a)
	if err := errors.Join(c.meshed(a, 1, 1), c.meshed(b, 1, 1)); err != nil {
		t.Error(err)
	}
}

// long says whether tests may take their time.
func long() bool { return os.Getenv("WEFT_TEST_LONG") != "" }

// meshed says what is missing until a node knows and hears so many nodes, and has its prefixes where it may have them.
func (c *cluster) meshed(n *nettest.ClusterNode, known, live int) error {
	var m api.Mesh
	if err := c.ask(n, &m, "mesh", "status"); err != nil {
		return err
	}
	if !m.Enabled || m.Known != known || m.Live != live || m.Reason != "" {
		return fmt.Errorf("%s: %+v", n.Name, m)
	}
	return nil
}

// meshPods are pods that daemons attached, for which addresses nobody but the daemons knew beforehand.
type meshPods struct {
	*cluster
	pods []meshPod
}

type meshPod struct {
	name  string
	node  *nettest.ClusterNode
	ns    *nettest.NS
	addrs []netip.Addr
}

func (m *meshPods) attach(n *nettest.ClusterNode, which string) {
	m.t.Helper()
	client := api.NewClient(m.path(n, "sock"))
	defer client.Close()
	pod := meshPod{name: which + " pod of " + n.Name, node: n, ns: nettest.New(m.t.(*testing.T))}
	got, err := client.Attach(m.t.Context(), api.AttachRequest{ContainerID: which + n.Name, IfName: "eth0", Netns: pod.ns.Path(), Network: "weft"})
	if err != nil {
		m.t.Fatal(err)
	}
	for _, ip := range got.IPs {
		pod.addrs = append(pod.addrs, ip.Address.Addr())
	}
	if len(pod.addrs) != 2 {
		m.t.Errorf("the %s has %v", pod.name, pod.addrs)
	}
	m.pods = append(m.pods, pod)
}

// reach waits until all pods of some nodes reach all others of them, over both inner families.
func (m *meshPods) reach(when string, nodes []*nettest.ClusterNode) {
	m.t.Helper()
	for _, from := range m.pods {
		for _, to := range m.pods {
			if from.node == to.node || !slices.Contains(nodes, from.node) || !slices.Contains(nodes, to.node) {
				continue
			}
			for _, a := range to.addrs {
				m.eventually(fmt.Sprintf("%s: the %s reaches the %s at %v", when, from.name, to.name, a), func() error { return ping(from.ns, a) })
			}
		}
	}
}

func (m *meshPods) prefixes(n *nettest.ClusterNode) []netip.Prefix {
	m.t.Helper()
	var s api.Status
	if err := m.ask(n, &s, "status"); err != nil {
		m.t.Fatal(err)
	}
	return s.Prefixes
}
