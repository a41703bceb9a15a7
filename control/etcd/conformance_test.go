package etcd_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"weft/control"
	"weft/control/controltest"
	"weft/control/etcd"
)

// cluster writes other nodes' keys as their daemons would.
type cluster struct {
	*server
	schema  string
	broken  bool
	written map[string]string
	running string // the node whose daemon is the source under test
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{etcd.SchemaWeft} {
		t.Run(schema, func(t *testing.T) {
			controltest.Run(t, controltest.Registered, func(t *testing.T) controltest.Cluster {
				c := &cluster{server: startServer(t), schema: schema, written: map[string]string{}}
				c.settings.Log, c.settings.Schema = zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)), schema
				c.settings.StateDir = t.TempDir()
				return c
			})
		})
	}
}

func (c *cluster) Source() control.Source { c.running = "a"; return etcd.New(c.settings) }
func (c *cluster) Break()                 { c.kill(); c.broken = true }

func (c *cluster) Commit(nodes []control.Node) {
	if c.broken {
		c.start()
		c.await()
		c.broken = false
	}
	want := map[string]string{}
	for _, n := range nodes {
		c.node(want, n)
	}
	for _, n := range nodes {
		if n.Name == c.running {
			for _, key := range c.keysOf(n) {
				delete(want, key)
				delete(c.written, key)
			}
		}
	}
	var ops []clientv3.Op
	commit := func(most int) {
		if len(ops) > most {
			_, err := c.client.Txn(c.t.Context()).Then(ops...).Commit()
			must(c.t, err)
			ops = nil
		}
	}
	for key := range c.written {
		if _, stays := want[key]; !stays {
			ops = append(ops, clientv3.OpDelete(key))
		}
		commit(100)
		if c.schema == etcd.SchemaWeft {
			commit(0) // one node at a time, as leases end
		}
	}
	commit(0)
	for _, n := range nodes { // in this order: who is first stays
		for _, key := range c.keysOf(n) {
			if value, ok := want[key]; ok && value != c.written[key] {
				ops = append(ops, clientv3.OpPut(key, value))
				c.written[key] = value
			}
		}
		commit(100)
		if len(nodes) < 100 {
			commit(0)
		}
	}
	commit(0)
	c.written = want
}

func (c *cluster) keysOf(n control.Node) []string {
	keys := []string{"/weft/nodes/" + n.Name}
	for _, p := range n.Prefixes {
		keys = append(keys, fmt.Sprintf("/weft/prefixes/%v-%d", p.Addr(), p.Bits()))
	}
	return keys
}

// node adds a node's keys to those that others wrote. Those of the node under test are its own
// business, but they are taken.
func (c *cluster) node(all map[string]string, n control.Node) {
	by := map[string]any{"id": "owner of " + n.Name, "epoch": 1}
	keys := c.keysOf(n)
	all[keys[0]] = encode(c.t, map[string]any{"endpoints": n.Endpoints, "prefixes": n.Prefixes, "mac": n.VTEP().String(), "public_key": n.PublicKey, "ways": n.Ways, "owner": by})
	for _, key := range keys[1:] {
		if _, taken := all[key]; !taken {
			all[key] = encode(c.t, map[string]any{"node": n.Name, "owner": by})
		}
	}
}

func encode(t testing.TB, v any) string {
	data, err := json.Marshal(v)
	must(t, err)
	return string(data)
}

func node(name string, endpoints ...string) control.Node {
	n := control.Node{Name: name, MAC: control.VTEPMAC(name)}
	for _, e := range endpoints {
		n.Endpoints = append(n.Endpoints, netip.MustParseAddr(e))
	}
	return n
}
