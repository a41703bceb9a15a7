package config_test

import (
	"fmt"
	"strings"
	"testing"

	"weft/internal/config"
)

// TestModes: a list of modes, and the ports that they come to.
func TestModes(t *testing.T) {
	for text, want := range map[string]string{
		"mode: [host-gw, vxlan]":                       "host-gw:0 vxlan:4789, port 4789, [host-gw vxlan]",
		"mode: [vxlan, tun-gso]":                       "vxlan:4789 tun-gso:4788, port 4789, [vxlan tun-gso]",
		"mode: [tun-gso, vxlan]":                       "tun-gso:4789 vxlan:4788, port 4789, [tun-gso vxlan]",
		"mode: [host-gw, vxlan, udp]":                  "host-gw:0 vxlan:4789 udp:8285, port 4789, [host-gw vxlan udp]",
		"mode: [vxlan]":                                "vxlan:4789, port 4789, vxlan",
		"mode: [tun-gso]\nencryption: {cipher: auto}":  "tun-gso:4789, port 4789, tun-gso",
		"mode: [vxlan, tun]\nencryption: {port: 4788}": "vxlan:4789 tun:4788, port 4789, [vxlan tun]",
		"mode: [host-gw]":                              "host-gw:0, port 0, host-gw",
		"":                                             "tun-gso:4789, port 4789, tun-gso",
		"control: {kind: etcd, etcd: {schema: flannel}}\nmode: [vxlan, tun-gso]": "vxlan:8472 tun-gso:4789, port 8472, [vxlan tun-gso]",

		"mode: []":                    "is empty",
		"mode: [vxlan, vxlan]":        "listed twice",
		"mode: [tun, tun-gso]":        "the packets of one mode only can pass through the daemon, and those of tun do already",
		"mode: [vxlan, vxlan-nocsum]": "modes vxlan and vxlan-nocsum are of one device of the kernel",
		"mode: [vxlan, tungso]":       "did you mean tun-gso?",
		"mode: [vxlan, tap]":          "cannot be one of several",
		"mode: {a: b}":                "wants",
		"mode: [[vxlan]]":             "wants",
		"mode: [vxlan, tun+auto]":     "names a cipher",
		"mode: [host-gw, tun]\nencryption: {cipher: auto}":                       "mode host-gw cannot seal",
		"mode: [tun, vxlan]\nencryption: {cipher: auto}":                         "mode vxlan cannot seal",
		"mode: [host-gw, vxlan]\nnode: {mtu: 600}":                               "600 leaves 550 bytes inside",
		"control: {kind: etcd, etcd: {schema: flannel}}\nmode: [host-gw, vxlan]": "mode host-gw does not",
	} {
		c, err := config.Parse("weft.yaml", []byte("network: {prefixes: [10.244.0.0/16]}\n"+text), full)
		if err == nil {
			err = c.Detect(config.Host{Name: func() (string, error) { return "a", nil }, CPUs: 2})
		}
		if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", text, err, want)
			}
			continue
		}
		var got []string
		for _, m := range c.Modes {
			got = append(got, fmt.Sprintf("%s:%d", m.Name, m.Port))
		}
		shown := ""
		for _, s := range c.Show() {
			if s.Key == "mode" {
				shown = fmt.Sprint(s.Value)
			}
		}
		if all := fmt.Sprintf("%s, port %d, %s", strings.Join(got, " "), c.Network.Port, shown); all != want || c.Mode.Name != c.Modes[0].Name || c.Mode.Port != c.Modes[0].Port {
			t.Errorf("%s: %s, want %s; the first is %+v", text, all, want, c.Mode)
		}
	}
}
