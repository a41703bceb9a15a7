package config_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft/internal/config"
)

func TestBGP(t *testing.T) {
	c, err := config.Parse("weft.yaml", []byte(`
network: 10.244.0.0/16
mode: [host-gw, vxlan]
bgp:
  as: 4200000000
  router_id: 192.0.2.1
  password_file: /mesh
  peers:
    - {address: 192.0.2.254, as: 64513, password_file: /tor, import: [198.51.100.0/24, 10.244.0.0/16 le 24], max_prefixes: 7, nodes: ["rack1-*", c]}
    - {address: "2001:db8::fe", as: 64514, families: [ipv4, ipv6], bfd: true}
    - {address: "2001:db8::fd", as: 64514, graceful_restart: false}
`), full)
	if err != nil {
		t.Fatal(err)
	}
	b := c.BGP
	tor := &b.Peers[0]
	if b.AS != 4200000000 || !b.Mesh || b.RouterID.String() != "192.0.2.1" || fmt.Sprint(b.PasswordFiles()) != "[/mesh /tor]" || tor.AS != 64513 || tor.MaxPrefixes != 7 ||
		fmt.Sprint(b.Peers) != "[192.0.2.254 as 64513 import 198.51.100.0/24, 10.244.0.0/16 le 24 2001:db8::fe as 64514 2001:db8::fd as 64514]" || fmt.Sprint(b.Peers[1].Families) != "[ipv4 ipv6]" || b.Peers[1].MaxPrefixes != 10000 {
		t.Errorf("%+v", b)
	}
	for i, want := range [][2]bool{{false, true}, {true, false}, {false, false}} {
		if got := [2]bool{b.Peers[i].BFD, b.Peers[i].Graceful}; got != want {
			t.Errorf("%v: BFD and graceful restart %v, want %v", b.Peers[i], got, want)
		}
	}
	for name, want := range map[string]bool{"rack1-7": true, "c": true, "rack2-7": false, "cc": false} {
		if tor.For(name) != want || !b.Peers[1].For(name) {
			t.Errorf("peers of %s: %v", name, tor.For(name))
		}
	}
	for p, want := range map[string][2]bool{"198.51.100.0/24": {true, false}, "198.51.100.0/25": {}, "198.51.0.0/16": {}, "10.244.7.0/24": {false, true}, "10.244.0.0/16": {false, true}, "10.244.7.0/25": {}, "10.245.7.0/24": {}, "fd00::/24": {}} {
		for i, takes := range want {
			if tor.Import[i].Takes(netip.MustParsePrefix(p)) != takes {
				t.Errorf("%v takes %s: %v", tor.Import[i], p, !takes)
			}
		}
	}
}

func TestBGPMistakes(t *testing.T) {
	for text, want := range map[string]string{
		`as: 4294967295`:                              `bgp.as: 4294967295 is out of range`,
		`mesh: false`:                                 `BGP is off: write bgp.as`,
		`peers: [{address: 192.0.2.9, as: 1}]`:        `BGP is off: write bgp.as`,
		`as: 1, router_id: "2001:db8::1"`:             `is no router ID`,
		`as: 1, mesh: false`:                          `leaves nobody to exchange routes with`,
		`as: 1, mode: x`:                              `unknown`,
		`as: 1, bfd: true`:                            `unknown`,
		`as: 1, password_file: tor`:                   `is not an absolute path`,
		`as: 1, peers: [192.0.2.9]`:                   `wants keys: address, as,`,
		`as: 1, peers: [{as: 1}]`:                     `has no address`,
		`as: 1, peers: [{address: 192.0.2.9}]`:        `has no as`,
		`as: 1, peers: [{address: router, as: 1}]`:    `"router" is no address of a router`,
		`as: 1, peers: [{address: "fe80::1", as: 1}]`: `link-local ones are not in this build`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1}, {address: 192.0.2.9, as: 2}]`:       `192.0.2.9 is listed twice`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, bfd: true, graceful_restart: true}]`: `contradict each other`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, families: [ipv6]}]`:                  `IPv6 prefixes cannot have an IPv4 next hop`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, families: [ipv5]}]`:                  `did you mean ipv`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: [0.0.0.0/0]}]`:               `a default route is not taken from BGP`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: [10.0.0.1/8]}]`:              `has bits set behind its length: write 10.0.0.0/8`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: ["10.0.0.0/8 ge 9"]}]`:       `le BITS`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: ["10.0.0.0/8 le 7"]}]`:       `with 8 to 32 bits`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: ["10.0.0.0/8 le 33"]}]`:      `with 8 to 32 bits`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, max_prefixes: 0}]`:                   `out of range`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, nodes: ["rack[1"]}]`:                 `is no pattern of node names`,
		`as: 1, mesh: false, password_file: /x, peers: [{address: 192.0.2.9, as: 1}]`:    `and bgp.mesh is false`,
		`as: 1, peers: [{address: "::ffff:192.0.2.9", as: 1}]`:                           `is no address of a router`,
		`as: 1, peers: [{address: 192.0.2.9, as: 1, import: ["::ffff:10.0.0.0/104"]}]`:   `is not a prefix`,
	} {
		_, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: host-gw\nbgp: {"+text+"}"), full)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: vxlan\nbgp: {as: 1}"), full); err == nil || !strings.Contains(err.Error(), "write `mode: host-gw`") {
		t.Error(err)
	}
}
