package etcd

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"weft/control"
)

// own is weft's schema:
//
//	PREFIX/network                  {"pools":[{"prefix":"10.244.0.0/16","node_length":24}],"vni":1,"reservations":{"a":["10.244.1.0/24"]}}
//	PREFIX/nodes/a                  {"endpoints":["192.0.2.1"],"prefixes":["10.244.1.0/24"],"mac":"02:…","features":["rco"],"ways":["vxlan:4789"],"public_key":"","owner":{"id":"…","epoch":3}}
//	PREFIX/prefixes/10.244.1.0-24   {"node":"a","owner":{"id":"…","epoch":3}}
//
// A node's key and the keys of its prefixes are written by one transaction and hang on one lease. A
// prefix is a node's when its key says so: what the node says about itself is not enough.
type own struct{ prefix string }

type ownNetwork struct {
	Pools        []control.Pool            `json:"pools"`
	VNI          uint32                    `json:"vni"`
	Reservations map[string][]netip.Prefix `json:"reservations,omitempty"`
}

type ownNode struct {
	Endpoints []netip.Addr   `json:"endpoints"`
	Prefixes  []netip.Prefix `json:"prefixes"`
	MAC       string         `json:"mac"`
	Features  []string       `json:"features,omitempty"`
	Ways      []control.Way  `json:"ways,omitempty"`
	PublicKey string         `json:"public_key,omitempty"`
	Owner     owner          `json:"owner"`
}

type ownPrefix struct {
	Node  string `json:"node"`
	Owner owner  `json:"owner"`
}

func (s own) networkKey() string          { return s.prefix + "/network" }
func (s own) claims() string              { return s.prefix + "/prefixes/" }
func (s own) nodes() string               { return s.prefix + "/nodes/" }
func (own) exclusive([]control.Pool) bool { return true }

func (own) decodeNetwork(value []byte) (control.Network, error) {
	var v ownNetwork
	if err := json.Unmarshal(value, &v); err != nil {
		return control.Network{}, fmt.Errorf("not the JSON that `weft network set` writes: %w", err)
	}
	n := control.Network{Pools: v.Pools, VNI: v.VNI, Reservations: v.Reservations}
	if wrong := n.Wrong(); wrong != "" {
		return control.Network{}, fmt.Errorf("%s", wrong)
	}
	return n, nil
}

func (own) encodeNetwork(n control.Network, _ []byte) ([]byte, error) {
	return json.Marshal(ownNetwork{n.Pools, n.VNI, n.Reservations})
}

func (s own) keys(n control.Node) []string {
	keys := []string{s.nodes() + n.Name}
	for _, p := range n.Prefixes {
		keys = append(keys, s.claims()+dashed(p))
	}
	return keys
}

func (s own) values(n control.Node, by owner) ([]string, error) {
	value, err := json.Marshal(ownNode{n.Endpoints, n.Prefixes, n.VTEP().String(), n.Features, n.Ways, n.PublicKey, by})
	if err != nil {
		return nil, err
	}
	claim, err := json.Marshal(ownPrefix{n.Name, by})
	if err != nil {
		return nil, err
	}
	values := []string{string(value)}
	for range n.Prefixes {
		values = append(values, string(claim))
	}
	return values, nil
}

func (s own) decode(key string, value []byte) (record, bool) {
	if name, ok := strings.CutPrefix(key, s.nodes()); ok {
		return decodeNode(name, value), true
	}
	if name, ok := strings.CutPrefix(key, s.claims()); ok {
		return decodeClaim(name, value), true
	}
	return record{}, false
}

func decodeNode(name string, value []byte) record {
	if wrong := control.WrongName(name); wrong != "" {
		return garbage("", "the key of a node is left out: %s", wrong)
	}
	var v ownNode
	if err := json.Unmarshal(value, &v); err != nil {
		return garbage(name, "the node is left out, its value in etcd cannot be read: %v: restart its daemon, or delete the key", err)
	}
	n := control.Node{Name: name, Endpoints: v.Endpoints, Prefixes: v.Prefixes, PublicKey: v.PublicKey, Features: v.Features, Ways: v.Ways}
	var err error
	if v.MAC != "" {
		n.MAC, err = control.ParseMAC(v.MAC)
	}
	if err != nil {
		return garbage(name, "the node is left out: %v: restart its daemon, or delete the key", err)
	}
	if wrong := control.WrongKey(v.PublicKey); wrong != "" {
		return garbage(name, "the node is left out: its public key is %s: restart its daemon, or delete the key", wrong)
	}
	r := record{node: n, name: name, owner: v.Owner}
	if len(n.Endpoints) > 0 {
		r.at = n.Endpoints[0]
	}
	return r
}

func decodeClaim(key string, value []byte) record {
	p, err := parseDashed(key)
	if err != nil {
		return garbage("", "a claimed prefix is left out: %v: delete the key", err)
	}
	var v ownPrefix
	if err := json.Unmarshal(value, &v); err != nil || control.WrongName(v.Node) != "" {
		r := garbage("", "the claim of prefix %v cannot be read, nobody is given the prefix: delete the key", p)
		r.claims = []netip.Prefix{p}
		return r
	}
	return record{claims: []netip.Prefix{p}, name: v.Node, owner: v.Owner}
}

// dashed writes a prefix as keys do, without a slash: 10.244.1.0-24, fd00:10:244:1::-64.
func dashed(p netip.Prefix) string { return fmt.Sprintf("%v-%d", p.Addr(), p.Bits()) }

func parseDashed(s string) (netip.Prefix, error) {
	addr, bits, _ := strings.Cut(s, "-")
	a, err := netip.ParseAddr(addr)
	n, nerr := strconv.Atoi(bits)
	if p := netip.PrefixFrom(a, n); err == nil && nerr == nil && p.IsValid() && p == p.Masked() && dashed(p) == s {
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("%q is not a prefix like 10.244.1.0-24", s)
}
