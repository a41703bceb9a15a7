package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/catalog/mode"
	"weft/internal/nettest"
)

// patience bounds every wait for a condition; it is no measure of how fast weft is.
const patience = nettest.Patience

// weft is the binary under test, built once by TestMain.
var weft string

func TestMain(m *testing.M) {
	var flags []string
	if raceEnabled {
		flags = []string{"-race"}
	}
	os.Exit(nettest.WithWeft(func(path string) int {
		weft = path
		return m.Run()
	}, flags...))
}

// cluster is a nettest.Cluster with a weft daemon on every node.
type cluster struct {
	*nettest.Cluster
	t       testing.TB
	mode    string
	modes   map[string]string // nodes of another mode
	family  int               // of the underlay: 4 or 6
	dir     string
	daemons map[string]*nettest.Process

	// prefix is a command and its arguments that start a node's daemon; nil = none.
	prefix func(n *nettest.ClusterNode) []string

	features string          // that nodes.yaml says all nodes announce
	told     bool            // nodes.yaml says by which ways each node takes packets
	dual     bool            // nodes have endpoints of both families
	absent   map[string]bool // nodes that nodes.yaml leaves out

	// encryption is the section of a node's weft.yaml, "" = none; publicKey what nodes.yaml says.
	encryption func(n *nettest.ClusterNode) string
	publicKey  map[string]string
	nodeMTU    map[string]int // node.mtu, by node
	iface      string         // node.interface; "" = detected
	control    string         // the section of weft.yaml; "" = nodes.yaml
	network    []netip.Prefix // network.prefixes; nil = those of all nodes, of both families
	extra      string         // more lines of every weft.yaml; NODE stands for the node's name
}

// up builds a cluster, starts a daemon per node and waits until all pods reach each other.
func up(t *testing.T, mode string, family int, o nettest.ClusterOptions) *cluster {
	t.Helper()
	return upMixed(t, mode, nil, family, o)
}

// upMixed is up with some nodes, by name, in another mode.
func upMixed(t *testing.T, mode string, modes map[string]string, family int, o nettest.ClusterOptions) *cluster {
	t.Helper()
	c := prepare(t, mode, family, o)
	c.modes = modes
	c.launch()
	return c
}

// prepare builds a cluster without daemons.
func prepare(t testing.TB, mode string, family int, o nettest.ClusterOptions) *cluster {
	t.Helper()
	return &cluster{Cluster: nettest.NewCluster(t, o), t: t, mode: mode, family: family, dir: t.TempDir(),
		daemons: map[string]*nettest.Process{}, absent: map[string]bool{}}
}

// launch starts a daemon per node and waits until all pods reach each other.
func (c *cluster) launch() {
	t := c.t
	t.Helper()
	if c.modes == nil { // the mixed clusters cover it without
		c.features = strings.Join(known(c.mode).Features, ", ")
	}
	c.writeNodes()
	for _, n := range c.Nodes {
		c.start(n)
	}
	t.Cleanup(func() {
		for _, p := range c.daemons {
			p.Kill()
		}
		if t.Failed() {
			for name, p := range c.daemons {
				t.Logf("daemon %s:\n%s", name, p.Output())
			}
		}
	})
	for _, n := range c.Nodes {
		c.ready(n)
	}
	c.allReach()
}

func (c *cluster) path(n *nettest.ClusterNode, file string) string {
	return filepath.Join(c.dir, n.Name+"-"+file)
}

func (c *cluster) nodesFile() string { return filepath.Join(c.dir, "nodes.yaml") }

// writeNodes writes nodes.yaml by rename, as editors do.
func (c *cluster) writeNodes() {
	c.t.Helper()
	var b strings.Builder
	b.WriteString("nodes:\n")
	for _, n := range c.Nodes {
		if c.absent[n.Name] {
			continue
		}
		ways := ""
		if c.told {
			ways = fmt.Sprintf(", ways: [%s]", c.waysOf(n))
		}
		fmt.Fprintf(&b, "  - {name: %s, endpoints: [%s], prefixes: [%q, %q], public_key: %q, features: [%s]%s}\n",
			n.Name, c.endpoints(n), n.Prefixes[0], n.Prefixes[1], c.publicKey[n.Name], c.features, ways)
	}
	c.writeFile(c.nodesFile(), b.String())
}

func (c *cluster) writeFile(name, text string) {
	c.t.Helper()
	tmp := name + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(tmp, name); err != nil {
		c.t.Fatal(err)
	}
}

// endpoint is the node's address of the cluster's family.
func (c *cluster) endpoint(n *nettest.ClusterNode) netip.Addr {
	if c.family == 6 {
		return n.Underlay[1]
	}
	return n.Underlay[0]
}

// endpoints is what nodes.yaml says of a node. Without a tunnel IPv6 needs an IPv6 next hop, while IPv4 can do with one.
func (c *cluster) endpoints(n *nettest.ClusterNode) string {
	list := strconv.Quote(c.endpoint(n).String())
	if (c.dual || known(c.mode).Wire == mode.Direct) && c.family == 4 {
		list += ", " + strconv.Quote(n.Underlay[1].String())
	}
	return list
}

// start starts a node's daemon.
func (c *cluster) start(n *nettest.ClusterNode) {
	c.t.Helper()
	c.writeConfig(n)
	cmd := []string{weft, "daemon", "--config", c.path(n, "weft.yaml")}
	if c.prefix != nil {
		cmd = append(c.prefix(n), cmd...)
	}
	c.daemons[n.Name] = n.NS.MustStart(c.t, cmd[0], cmd[1:]...)
}

// writeConfig writes a node's weft.yaml.
func (c *cluster) writeConfig(n *nettest.ClusterNode) {
	c.t.Helper()
	network, mode := c.network, c.mode
	if network == nil {
		network = c.Network()
	}
	if m := c.modes[n.Name]; m != "" {
		mode = m
	}
	encryption := ""
	if c.encryption != nil {
		encryption = c.encryption(n)
	}
	control := c.control
	if control == "" {
		control = fmt.Sprintf("{kind: static, static: {file: %s}}", c.nodesFile())
	}
	extra := strings.ReplaceAll(c.extra, "NODE", n.Name)
	if !strings.Contains(extra, "queues:") {
		extra += "\nqueues: 1" // the default depends on the machine's cores
	}
	c.writeFile(c.path(n, "weft.yaml"), fmt.Sprintf(`node: {name: %s, mtu: %d, interface: %q}
network: {prefixes: ["%s"]}
mode: %s
control: %s
api: {socket: %s}
state_dir: %s
%s
%s
`, n.Name, c.nodeMTU[n.Name], c.iface, quoted(network), mode, control, c.path(n, "sock"), c.path(n, "state"), encryption, extra))
}

// quoted writes prefixes for the inside of a list of strings in double quotes.
func quoted(list []netip.Prefix) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint(list), "[]"), " ", `", "`)
}

// stop ends a node's daemon by a signal and waits for its end.
func (c *cluster) stop(n *nettest.ClusterNode, s syscall.Signal) {
	c.t.Helper()
	p := c.daemons[n.Name]
	p.Signal(s)
	select {
	case <-p.Done():
	case <-time.After(patience):
		c.t.Fatalf("daemon %s ignores %v:\n%s", n.Name, s, p.Output())
	}
}

// ask runs a weft command against a node's daemon and decodes its JSON.
func (c *cluster) ask(n *nettest.ClusterNode, into any, args ...string) error {
	args = append(args, "--socket", c.path(n, "sock"), "-o", "json")
	out, err := exec.Command(weft, args...).Output()
	if err != nil {
		return fmt.Errorf("weft %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return json.Unmarshal(out, into)
}

type status struct {
	Ready    bool     `json:"ready"`
	Mode     string   `json:"mode"`
	InnerMTU int      `json:"inner_mtu"`
	Devices  []string `json:"devices"`
}

func (c *cluster) status(n *nettest.ClusterNode) (s status, err error) {
	err = c.ask(n, &s, "status")
	return s, err
}

func (c *cluster) ready(n *nettest.ClusterNode) {
	c.t.Helper()
	c.eventually(n.Name+" is ready", func() error {
		select {
		case <-c.daemons[n.Name].Done():
			c.t.Fatalf("daemon %s ended", n.Name)
		default:
		}
		s, err := c.status(n)
		if err == nil && !s.Ready {
			err = fmt.Errorf("not ready")
		}
		return err
	})
}

// eventually waits for a condition.
func (c *cluster) eventually(what string, cond func() error) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v for: %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond) // between looks at a condition
	}
}

// lane is a lane's account.
type lane struct {
	Name     string `json:"name"`
	Received uint64 `json:"received"`
	Copied   uint64 `json:"copied"`
	Sent     uint64 `json:"sent"`
	Stages   []struct {
		Drops map[string]uint64 `json:"drops"`
	} `json:"stages"`
}

// drops are the lane's dead by name.
func (l lane) drops() map[string]uint64 {
	sum := map[string]uint64{}
	for _, s := range l.Stages {
		for name, n := range s.Drops {
			sum[name] += n
		}
	}
	return sum
}

func (l lane) dead() (n uint64) {
	for _, d := range l.drops() {
		n += d
	}
	return n
}

func (c *cluster) lanes(n *nettest.ClusterNode) (lanes []lane) {
	c.t.Helper()
	if err := c.ask(n, &lanes, "stages"); err != nil {
		c.t.Fatal(err)
	}
	return lanes
}

// ping sends one echo request from a namespace.
func ping(ns *nettest.NS, to netip.Addr, args ...string) error {
	args = append([]string{"-n", "-c", "1", "-W", "1"}, append(args, to.String())...)
	out, err := ns.Run("ping", args...)
	if err != nil {
		return fmt.Errorf("ping %v: %w\n%s", to, err, out)
	}
	return nil
}

// allReach waits until every pod reaches every other node's pod, over both inner families.
func (c *cluster) allReach() {
	c.t.Helper()
	for _, a := range c.Nodes {
		for _, b := range c.Nodes {
			if a == b || c.absent[a.Name] || c.absent[b.Name] {
				continue
			}
			for _, to := range b.PodAddrs {
				c.eventually(fmt.Sprintf("pod of %s reaches %v", a.Name, to), func() error { return ping(a.Pod, to) })
			}
		}
	}
}
