package mesh

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"weft/control"
	"weft/control/controltest"
)

// writtenCluster is a mesh whose nodes are records: one member without a prefix of its own has them, and tells them to the source under test.
type writtenCluster struct {
	t      *testing.T
	net    *simNet
	helper *simNode
	dir    string // of the node under test
	first  bool
	nodes  map[string]*writtenNode
	stamp  uint64
}

type writtenNode struct {
	control.Node
	key    ed25519.PrivateKey
	seq    uint64
	born   uint64
	claims []claim
}

const tested = "a"

func TestConformance(t *testing.T) {
	t.Parallel()
	controltest.Run(t, controltest.Registered, func(t *testing.T) controltest.Cluster {
		t.Parallel()
		c := &writtenCluster{t: t, net: newSimNet(), dir: t.TempDir(), first: true, nodes: map[string]*writtenNode{}, stamp: 10}
		c.helper = c.net.newNode(t, "helper", 200)
		c.helper.set.Expect = 1 << 20 // so that it never has a prefix
		c.helper.start()
		until(t, time.Minute, "the helper is there", func() bool { return c.helper.running.get() != nil && c.helper.state().Self.Name != "" }, func() string { return "" })
		return c
	})
}

func (c *writtenCluster) Source() control.Source {
	at := netip.MustParseAddrPort("198.18.0.1:4786")
	return New(Settings{Join: []string{c.helper.addr.String()}, Port: DefaultPort, Forget: 24 * time.Hour, Secrets: password(1), Network: simNetwork, VNI: 1,
		StateDir: c.dir, Log: zap.NewNop(),
		listen: func() (memberlist.NodeAwareTransport, netip.AddrPort, error) { return c.net.listen(at), at, nil }})
}

func (c *writtenCluster) Break() { c.net.part() }

func (c *writtenCluster) Commit(nodes []control.Node) {
	c.net.heal()
	run := c.helper.running.get()
	there := map[string]bool{}
	var records []*record
	for _, n := range nodes {
		there[n.Name] = true
		w := c.nodes[n.Name]
		if w != nil && w.Equal(n) {
			continue
		}
		if w == nil {
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				c.t.Fatal(err)
			}
			c.stamp++
			w = &writtenNode{key: key, born: c.stamp}
			c.nodes[n.Name] = w
		}
		had := w.claims
		w.Node, w.claims = n, nil
		for _, p := range n.Prefixes {
			i := slices.IndexFunc(had, func(cl claim) bool { return cl.Prefix == p })
			if i < 0 {
				c.stamp++
				w.claims = append(w.claims, claim{p, c.stamp, true})
			} else {
				w.claims = append(w.claims, had[i])
			}
		}
		w.seq++
		if n.Name == tested {
			c.remember(w)
			continue
		}
		r := &record{Seq: w.seq, Name: n.Name, Gossip: netip.AddrPortFrom(n.Endpoints[0], DefaultPort), Born: w.born, VNI: 1, Claims: w.claims, Endpoints: n.Endpoints,
			MAC: n.VTEP().String(), PublicKey: n.PublicKey, Features: n.Features, Ways: n.Ways}
		if err := r.sign(w.key); err != nil {
			c.t.Fatal(err)
		}
		records = append(records, r)
	}
	run.take(records, !c.first)
	for name, w := range c.nodes {
		if !there[name] && name != tested {
			delete(c.nodes, name)
			run.mu.Lock()
			if e := run.book.entries[idOf(w.key.Public().(ed25519.PublicKey))]; e != nil {
				run.drop(e)
			}
			run.mu.Unlock()
			run.wake()
		}
	}
	c.first = false
}

// remember gives the node under test what it had before it is started for the first time.
func (c *writtenCluster) remember(w *writtenNode) {
	if !c.first {
		return
	}
	m, err := remember(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	m.Seed, m.Seq, m.Born, m.Claims, m.Heard = w.key.Seed(), w.seq, w.born, w.claims, time.Now()
	if err := m.save(); err != nil {
		c.t.Fatal(err)
	}
}
