package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"weft/control"
)

// flannel is the schema that flanneld keeps in etcd, so that weft nodes and flanneld nodes are one
// cluster (flannel, pkg/subnet):
//
//	PREFIX/config                              {"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":1}}
//	PREFIX/subnets/10.244.1.0-24               {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:…"}}
//	PREFIX/subnets/10.244.1.0-24&fd00::-64     the same with two families, with BackendV6Data
//
// A key belongs to the node whose PublicIP it names; a key without a lease is a reservation for it.
// flanneld ignores members it does not know, so a weft node adds "Weft" with what Flannel has no
// place for. flanneld nodes have no names: their public address is one.
type flannel struct {
	prefix string
	vni    uint32 // of this node
	port   uint16 // of the tunnel: Flannel's leases do not tell
}

type flannelNetwork struct {
	Network       string
	SubnetLen     int             `json:",omitempty"`
	SubnetMin     *netip.Addr     `json:",omitempty"`
	SubnetMax     *netip.Addr     `json:",omitempty"`
	EnableIPv4    *bool           `json:",omitempty"`
	EnableIPv6    bool            `json:",omitempty"`
	IPv6Network   string          `json:",omitempty"`
	IPv6SubnetLen int             `json:",omitempty"`
	IPv6SubnetMin *netip.Addr     `json:",omitempty"`
	IPv6SubnetMax *netip.Addr     `json:",omitempty"`
	Backend       json.RawMessage `json:",omitempty"`
}

type flannelBackend struct {
	Type          string
	VNI           *uint32 `json:",omitempty"`
	Port          uint16  `json:",omitempty"`
	DirectRouting bool    `json:",omitempty"`
}

type flannelLease struct {
	PublicIP      netip.Addr
	PublicIPv6    *netip.Addr
	BackendType   string       `json:",omitempty"`
	BackendData   *flannelVTEP `json:",omitempty"`
	BackendV6Data *flannelVTEP `json:",omitempty"`
	Weft          *flannelWeft `json:",omitempty"`
}

type flannelVTEP struct {
	VNI     uint32
	VtepMAC string
}

type flannelWeft struct {
	Name      string        `json:"name"`
	Features  []string      `json:"features,omitempty"`
	Ways      []control.Way `json:"ways,omitempty"`
	PublicKey string        `json:"public_key,omitempty"`
	Owner     owner         `json:"owner"`
}

// FlannelPort is the UDP port of VXLAN where Flannel's configuration names none: Linux's own default.
const FlannelPort = 8472

const flannelVNI = 1

func (s flannel) networkKey() string { return s.prefix + "/config" }
func (s flannel) claims() string     { return s.prefix + "/subnets/" }

// exclusive: a key with two prefixes does not keep others from claiming one of them in another pair.
func (flannel) exclusive(pools []control.Pool) bool { return len(pools) < 2 }

func (flannel) decodeNetwork(value []byte) (control.Network, error) {
	var v flannelNetwork
	if err := json.Unmarshal(value, &v); err != nil {
		return control.Network{}, fmt.Errorf("not Flannel's JSON: %w", err)
	}
	if v.EnableIPv4 != nil && !*v.EnableIPv4 {
		return control.Network{}, errors.New("EnableIPv4 is false: Flannel's keys in etcd cannot do without IPv4, nor can weft with them")
	}
	vni := uint32(flannelVNI)
	b := flannelBackend{VNI: &vni}
	if len(v.Backend) > 0 {
		if err := json.Unmarshal(v.Backend, &b); err != nil {
			return control.Network{}, fmt.Errorf("the Backend key is not Flannel's JSON: %w", err)
		}
	}
	if b.Type != "vxlan" {
		return control.Network{}, fmt.Errorf("Backend.Type is %q (none means udp to flanneld): weft joins vxlan networks, write \"Backend\":{\"Type\":\"vxlan\"}", b.Type)
	}
	if b.DirectRouting {
		return control.Network{}, errors.New("Backend.DirectRouting is on: flanneld nodes would then send to weft nodes of their own IP subnet without VXLAN; turn it off")
	}
	n := control.Network{VNI: *b.VNI, Port: b.Port}
	if n.Port == 0 {
		n.Port = FlannelPort
	}
	pools := []struct {
		network  string
		bits     int
		min, max *netip.Addr
	}{{v.Network, v.SubnetLen, v.SubnetMin, v.SubnetMax}}
	if v.EnableIPv6 {
		pools = append(pools, pools[0])
		p := &pools[1]
		p.network, p.bits, p.min, p.max = v.IPv6Network, v.IPv6SubnetLen, v.IPv6SubnetMin, v.IPv6SubnetMax
	}
	for _, p := range pools {
		pool, err := flannelPool(p.network, p.bits, p.min, p.max)
		if err != nil {
			return control.Network{}, err
		}
		n.Pools = append(n.Pools, pool)
	}
	if wrong := n.Wrong(); wrong != "" {
		return control.Network{}, errors.New(wrong)
	}
	return n, nil
}

// flannelPool cuts a network as flanneld does (CheckNetworkConfig): the first prefix is not given,
// because its network address is the network's.
func flannelPool(network string, bits int, first, last *netip.Addr) (control.Pool, error) {
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return control.Pool{}, fmt.Errorf("%q is not a prefix: correct Network or IPv6Network", network)
	}
	pool := control.NewPool(p.Masked())
	if bits != 0 {
		pool.NodeLength = bits
	}
	if pool.NodeLength < p.Bits()+2 || pool.NodeLength > p.Addr().BitLen()-2 {
		return control.Pool{}, fmt.Errorf("nodes' prefixes of %d bits do not fit into %v four times: correct SubnetLen or IPv6SubnetLen", pool.NodeLength, p)
	}
	pool.First = pool.Nth(1).Addr()
	if first != nil {
		pool.First = *first
	}
	if last != nil {
		pool.Last = *last
	}
	for _, a := range []netip.Addr{pool.First, pool.Last} {
		if a.IsValid() && (!p.Contains(a) || netip.PrefixFrom(a, pool.NodeLength).Masked().Addr() != a) {
			return control.Pool{}, fmt.Errorf("%v is not the first address of a node's prefix in %v: correct SubnetMin or SubnetMax", a, p)
		}
	}
	return pool, nil
}

func (flannel) encodeNetwork(n control.Network, old []byte) ([]byte, error) {
	if len(n.Reservations) > 0 {
		return nil, errors.New("the Flannel schema keeps reservations in subnet keys without a lease: write such a key with the node's PublicIP instead")
	}
	all := map[string]any{} // what old has beyond what is set here stays
	if len(old) > 0 {
		if err := json.Unmarshal(old, &all); err != nil {
			return nil, fmt.Errorf("the present value is not JSON, and is not overwritten: delete the key first: %w", err)
		}
	}
	for _, key := range []string{"Network", "SubnetLen", "SubnetMin", "SubnetMax", "IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "EnableIPv6"} {
		delete(all, key)
	}
	for _, p := range n.Pools {
		network, bits := "Network", "SubnetLen"
		if p.Prefix.Addr().Is6() {
			network, bits = "IPv6Network", "IPv6SubnetLen"
			all["EnableIPv6"] = true
		}
		if all[network] != nil {
			return nil, errors.New("the Flannel schema has one prefix of each family: remove the others")
		}
		all[network], all[bits] = p.Prefix.String(), p.NodeLength
	}
	if all["Network"] == nil {
		return nil, errors.New("the Flannel schema needs an IPv4 prefix: add one")
	}
	b, _ := all["Backend"].(map[string]any)
	if b == nil {
		b = map[string]any{}
	}
	b["Type"], b["VNI"] = "vxlan", n.VNI
	if n.Port != 0 {
		b["Port"] = n.Port
	}
	all["Backend"] = b
	return json.Marshal(all)
}

func (s flannel) keys(n control.Node) []string {
	words := make([]string, len(n.Prefixes))
	for i, p := range n.Prefixes {
		words[i] = dashed(p)
	}
	return []string{s.claims() + strings.Join(words, "&")}
}

func (s flannel) values(n control.Node, by owner) ([]string, error) {
	v := flannelLease{BackendType: "vxlan", Weft: &flannelWeft{n.Name, n.Features, n.Ways, n.PublicKey, by}}
	for _, a := range n.Endpoints {
		switch {
		case a.Is4() && !v.PublicIP.IsValid():
			v.PublicIP, v.BackendData = a, &flannelVTEP{s.vni, n.VTEP().String()}
		case a.Is6() && v.PublicIPv6 == nil && len(n.Prefixes) > 1:
			v.PublicIPv6, v.BackendV6Data = &a, &flannelVTEP{s.vni, n.VTEP().String()}
		}
	}
	if !v.PublicIP.IsValid() {
		return nil, fmt.Errorf("this node has no IPv4 address for its PublicIP among %v: Flannel's schema cannot do without", n.Endpoints)
	}
	value, err := json.Marshal(v)
	return []string{string(value)}, err
}

// flannelKey is flanneld's own expression (pkg/subnet), anchored.
var flannelKey = regexp.MustCompile(`^(\d+\.\d+\.\d+\.\d+-\d+)(?:&([a-f\d:]+-\d+))?$`)

func (s flannel) decode(key string, value []byte) (record, bool) {
	name, ok := strings.CutPrefix(key, s.claims())
	if !ok {
		return record{}, false
	}
	var prefixes []netip.Prefix
	parts := flannelKey.FindStringSubmatch(name)
	if parts == nil {
		return garbage("", "the subnet key %q is left out: it is not like 10.244.1.0-24: delete it", name), true
	}
	for _, part := range parts[1:] {
		if part == "" {
			continue
		}
		p, err := parseDashed(part)
		if err != nil {
			return garbage("", "the subnet key %q is left out: %v: delete it", name, err), true
		}
		prefixes = append(prefixes, p)
	}
	r := s.decodeLease(prefixes, value)
	r.claims = prefixes
	return r, true
}

func (s flannel) decodeLease(prefixes []netip.Prefix, value []byte) record {
	var v flannelLease
	if err := json.Unmarshal(value, &v); err != nil {
		return garbage("", "the node of %v is left out, its value in etcd cannot be read: %v: restart its daemon, or delete the key", prefixes, err)
	}
	n := control.Node{Prefixes: prefixes}
	if v.PublicIP.IsValid() && !v.PublicIP.IsUnspecified() {
		n.Endpoints = append(n.Endpoints, v.PublicIP)
	}
	if v.PublicIPv6 != nil && !v.PublicIPv6.IsUnspecified() {
		n.Endpoints = append(n.Endpoints, *v.PublicIPv6)
	}
	var by owner
	switch {
	case v.Weft != nil:
		n.Name, n.Features, n.Ways, n.PublicKey, by = v.Weft.Name, v.Weft.Features, v.Weft.Ways, v.Weft.PublicKey, v.Weft.Owner
	case len(n.Endpoints) > 0:
		n.Name = strings.ReplaceAll(n.Endpoints[0].String(), ":", "-")
		n.Ways = control.KernelVXLAN(s.port)
	}
	if wrong := control.WrongName(n.Name); wrong != "" {
		return garbage("", "the node of %v is left out: it has neither PublicIP nor a name: restart its daemon, or delete the key", prefixes)
	}
	if wrong := control.WrongKey(n.PublicKey); wrong != "" {
		return garbage(n.Name, "the node is left out: its public key is %s: restart its daemon, or delete the key", wrong)
	}
	r := record{node: n, name: n.Name, owner: by}
	if len(n.Endpoints) > 0 {
		r.at = n.Endpoints[0]
	}
	if v.BackendType == "" && v.BackendData == nil { // a reservation that its node has not taken yet
		r.node = control.Node{}
		return r
	}
	data := v.BackendData
	if data == nil {
		data = v.BackendV6Data
	}
	if v.BackendType != "vxlan" || data == nil {
		return garbage(n.Name, "the node is left out, it speaks %q: weft nodes reach vxlan nodes only", v.BackendType)
	}
	if data.VNI != s.vni {
		return garbage(n.Name, "the node is left out, its VNI is %d and this node's %d: make them the same", data.VNI, s.vni)
	}
	if data.VtepMAC == "" {
		return r
	}
	mac, err := control.ParseMAC(data.VtepMAC)
	if err != nil {
		return garbage(n.Name, "the node is left out: VtepMAC: %v: restart its daemon, or delete the key", err)
	}
	r.node.MAC = mac
	return r
}
