package etcd_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/control"
	"weft/control/etcd"
)

// flannelNode is a cluster of flanneld nodes as they write it (flannel 0.28), with its own reading.
const (
	flannelConfig = `{"Network":"10.244.0.0/16","SubnetLen":24,"EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":1,"GBP":false}}`
	flanneldLease = `{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"5e:3c:a1:04:9f:10"}}`
)

func flannelSettings(set *etcd.Settings) {
	set.Schema, set.Port = etcd.SchemaFlannel, etcd.FlannelPort
	set.Network = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
}

// A weft node in a network of flanneld nodes: it sees them with their MAC, and they see it.
func TestFlannel(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.put("/coreos.com/network/config", flannelConfig)
	s.put("/coreos.com/network/subnets/10.244.7.0-24", flanneldLease)
	a := run(t, s.of("a", flannelSettings), node("a", "192.0.2.1"))
	st := a.await("joined", joined(1))
	if n := st.Nodes[0]; n.Name != "192.0.2.7" || n.MAC.String() != "5e:3c:a1:04:9f:10" || fmt.Sprint(n.Endpoints, n.Prefixes, n.Ways) != "[192.0.2.7] [10.244.7.0/24] [vxlan:8472 frames:8472]" {
		t.Errorf("flanneld's node is %+v", n)
	}
	own := st.Self.Prefixes[0]
	key := fmt.Sprintf("/coreos.com/network/subnets/%v-24", own.Addr())
	// As flanneld reads it: pkg/lease, pkg/backend/vxlan.
	var lease struct {
		PublicIP      netip.Addr
		PublicIPv6    *netip.Addr
		BackendType   string
		BackendData   json.RawMessage
		BackendV6Data json.RawMessage
	}
	var data struct {
		VNI     uint32
		VtepMAC string
	}
	value := s.keys(key)[key]
	must(t, json.Unmarshal([]byte(value), &lease))
	must(t, json.Unmarshal(lease.BackendData, &data))
	if lease.PublicIP.String() != "192.0.2.1" || lease.PublicIPv6 != nil || lease.BackendType != "vxlan" || data.VNI != 1 || data.VtepMAC != control.VTEPMAC("a").String() || lease.BackendV6Data != nil {
		t.Errorf("%s = %s", key, value)
	}
	if own.Addr() == netip.MustParseAddr("10.244.0.0") {
		t.Error("the first prefix, which flanneld never gives, was given")
	}

	b := run(t, s.of("b", flannelSettings), node("b", "192.0.2.2"))
	b.await("b sees both", joined(2))
	a.await("a sees both", joined(2))
	// flanneld renews by writing the same again: nothing moves.
	last := a.last
	s.put("/coreos.com/network/subnets/10.244.7.0-24", flanneldLease)
	s.put("/coreos.com/network/subnets/10.244.7.0-24", strings.Replace(flanneldLease, "5e:3c", "5e:3d", 1))
	st = a.await("the new MAC", func(st control.State) bool {
		i := slices.IndexFunc(st.Nodes, func(n control.Node) bool { return n.Name == "192.0.2.7" })
		if i < 0 {
			t.Fatalf("a renewal took the node away: %+v", st)
		}
		return st.Nodes[i].MAC.String() == "5e:3d:a1:04:9f:10"
	})
	if len(st.Nodes) != len(last.Nodes) || len(st.Problems) > 0 {
		t.Errorf("state %+v", st)
	}
	s.put("/coreos.com/network/subnets/10.244.8.0-24", `{"PublicIP":"192.0.2.8","PublicIPv6":null,"BackendType":"host-gw"}`)
	a.await("a node of another kind", both(joined(2), problem(`it speaks "host-gw"`)))
}

// A subnet key without a lease is a reservation of its PublicIP: that node gets it, and it stays
// without expiry. A node that ran flanneld before keeps its subnet.
func TestFlannelReservation(t *testing.T) {
	s := startServer(t)
	s.put("/coreos.com/network/config", flannelConfig)
	const reserved, former = "/coreos.com/network/subnets/10.244.33.0-24", "/coreos.com/network/subnets/10.244.44.0-24"
	s.put(reserved, `{"PublicIP":"192.0.2.1","PublicIPv6":null}`)
	grant, err := s.client.Grant(t.Context(), 600)
	must(t, err)
	_, err = s.client.Put(t.Context(), former, strings.Replace(flanneldLease, "192.0.2.7", "192.0.2.2", 1), withLease(grant.ID))
	must(t, err)
	a := run(t, s.of("a", flannelSettings), node("a", "192.0.2.1"))
	b := run(t, s.of("b", flannelSettings), node("b", "192.0.2.2"))
	a.await("both", joined(1))
	b.await("both", joined(1))
	if a.last.Self.Prefixes[0].String() != "10.244.33.0/24" || b.last.Self.Prefixes[0].String() != "10.244.44.0/24" {
		t.Errorf("a has %v, b has %v", a.last.Self.Prefixes, b.last.Self.Prefixes)
	}
	for key, leased := range map[string]bool{reserved: false, former: true} {
		resp, err := s.client.Get(t.Context(), key)
		must(t, err)
		if kv := resp.Kvs[0]; kv.Lease != 0 != leased || !strings.Contains(string(kv.Value), `"VtepMAC"`) {
			t.Errorf("%s = %s, lease %d", key, kv.Value, kv.Lease)
		}
	}
}

// Two families share a key there; racing joins still give each prefix once.
func TestFlannelDualStack(t *testing.T) {
	s := startServer(t)
	s.put("/coreos.com/network/config", `{"Network":"10.244.0.0/22","EnableIPv6":true,"IPv6Network":"fd00:10:244::/62","Backend":{"Type":"vxlan","Port":4789}}`)
	dual := func(set *etcd.Settings) {
		flannelSettings(set)
		set.Port, set.Network = 4789, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), netip.MustParsePrefix("fd00:10:244::/62")}
	}
	var nodes []*daemon
	for i := range 3 {
		name := string(rune('a' + i))
		nodes = append(nodes, run(t, s.of(name, dual), node(name, fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%d", i+1))))
	}
	seen := map[netip.Prefix]bool{}
	for _, n := range nodes {
		st := n.await("all", joined(2))
		if len(st.Self.Prefixes) != 2 || len(st.Nodes[0].Endpoints) != 2 {
			t.Errorf("state %+v", st)
		}
		for _, p := range st.Self.Prefixes {
			if seen[p] {
				t.Errorf("%v twice", p)
			}
			seen[p] = true
		}
	}
	for key := range s.keys("/coreos.com/network/subnets/") {
		if !strings.Contains(key, "-24&fd00:10:244:") || !strings.HasSuffix(key, "-64") {
			t.Errorf("key %s", key)
		}
	}
	d := run(t, s.of("d", dual), node("d", "192.0.2.4", "2001:db8::4"))
	d.await("no more", problem("no prefix is free: all 3 prefixes of 24 bits in 10.244.0.0/22"))
}

func TestFlannelRefuses(t *testing.T) {
	s := startServer(t)
	for name, c := range map[string]struct{ config, want string }{
		"another network": {`{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}`, "the cluster's network is [10.1.0.0/16]"},
		"another VNI":     {`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, "the cluster's VNI is 7"},
		"another port":    {`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`, "the cluster's port is 4789"},
	} {
		t.Run(name, func(t *testing.T) {
			s.put("/coreos.com/network/config", c.config)
			src := s.of("a", flannelSettings)
			src.Announce(node("a", "192.0.2.1"))
			err := src.Run(t.Context(), func(control.State) {})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	for _, c := range []struct {
		set  func(*etcd.Settings)
		self control.Node
		want string
	}{{flannelSettings, node("a", "2001:db8::1"), "no IPv4 address"}, {nil, node("a"), "set node.interface"}} {
		src := s.of("a", c.set)
		src.Announce(c.self)
		if err := src.Run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}
