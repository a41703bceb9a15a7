package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/api"
	"weft/backend"
	"weft/catalog"
	"weft/catalog/mode"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet"
	"weft/insight/doctor"
	"weft/insight/trace"
	"weft/internal/config"
	"weft/internal/nettest"
	"weft/perf/contender"
)

// TestPlantedMode: a mode is known everywhere once the list has it. Nobody else keeps a list.
func TestPlantedMode(t *testing.T) {
	planted := mode.Mode{Name: "quic", About: "TUN → QUIC → AF_XDP", For: "what nobody has built", Wire: mode.IPUDP, Port: 443,
		Inside: mode.TUN, Outside: mode.AFXDP, Needs: []string{"tun", "nosuchability"}, Features: []string{"streams"}}
	quiet := planted // but for its outside
	quiet.Name, quiet.Outside = "quic-udp", mode.UDP
	modes := append(mode.All(), planted, quiet)

	t.Run("configuration", func(t *testing.T) {
		built := catalog.Built()
		built.Modes = modes
		c := parse(t, built, "network: 10.244.0.0/16\nmode: quic\nencryption: {cipher: auto}")
		if c.Mode.Name != "quic" || c.Network.Port != 443 {
			t.Errorf("%+v, port %d", c.Mode, c.Network.Port)
		}
		if _, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: quick"), built); err == nil || !strings.Contains(err.Error(), "did you mean quic?") {
			t.Errorf("%v", err)
		}
		if _, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\nmode: quic\nnode: {mtu: 635}\nencryption: {cipher: auto}"), built); err == nil ||
			!strings.Contains(err.Error(), "635 leaves 575 bytes inside") {
			t.Errorf("%v", err)
		}
	})
	t.Run("doctor", func(t *testing.T) {
		built := catalog.Built()
		built.Modes = modes
		c := parse(t, built, "network: 10.244.0.0/16\nmode: quic\nnode: {mtu: 1500}")
		client := api.NewClient("/nonexistent")
		defer client.Close()
		for _, f := range doctor.Examine(t.Context(), doctor.Subject{Config: c, Modes: modes, Client: client}) {
			if f.Name == "tun device" && f.Level != doctor.OK && !strings.Contains(f.Found, "quic") {
				t.Errorf("%+v", f)
			}
			if f.Name == "udp port" && !strings.Contains(f.Found, "443") {
				t.Errorf("%+v", f)
			}
		}
		known := doctor.Abilities(doctor.Subject{Config: c, Modes: modes})
		if i := slices.IndexFunc(known, func(f doctor.Finding) bool { return f.Name == "nosuchability" }); i < 0 || known[i].Level != doctor.Missing ||
			!strings.Contains(known[i].Found, "modes quic, quic-udp cannot run here") {
			t.Errorf("%+v", known)
		}
	})
	t.Run("trace", func(t *testing.T) {
		ns := nettest.New(t)
		ns.MustRun(t, "ip", "tuntap", "add", "weft0", "mode", "tun")
		ns.MustRun(t, "ip", "tuntap", "add", "eth0", "mode", "tap")
		for _, dev := range []string{"weft0", "eth0"} {
			ns.MustRun(t, "ip", "link", "set", dev, "up")
		}
		ns.MustRun(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
		ns.MustRun(t, "ip", "addr", "add", "10.244.1.1/32", "dev", "weft0")
		ns.MustRun(t, "ip", "route", "add", "10.244.2.0/24", "dev", "weft0")
		var err error
		var host *hostnet.Host
		ns.Do(func() { host, err = hostnet.New(nil) })
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		peer := control.Node{Name: "b", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}}
		self := control.Node{Name: "a", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
		for _, m := range []mode.Mode{planted, quiet} {
			n := trace.Node{State: &control.State{Self: self, Nodes: []control.Node{peer}}, Mode: m, Host: host,
				Status: backend.Status{UnderlayMTU: 1500, InnerMTU: 1400, Hops: []backend.Hop{{Node: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:443"), Prefixes: peer.Prefixes, MTU: 1400}}},
				Stages: map[dataplane.Direction][]string{dataplane.Out: {"quic"}}}
			path, err := trace.Explain(n, api.PathQuestion{Src: netip.MustParseAddr("10.244.1.1"), Dst: netip.MustParseAddr("10.244.2.9"), Protocol: 17, DPort: 53, Size: 100})
			if err != nil || path.Mode != m.Name || path.Next != "b" {
				t.Fatalf("%+v, %v", path, err)
			}
			filtered := 0
			for _, s := range path.Steps {
				if s.Where == "nftables output" {
					filtered++
				}
			}
			// The packet itself is the node's own: once. The tunnel's is once more where it goes by the kernel.
			if want := map[bool]int{true: 1, false: 2}[m.PastKernel()]; filtered != want {
				t.Errorf("%s passes nftables output %d times, want %d: %+v", m.Name, filtered, want, path.Steps)
			}
		}
	})
	t.Run("lab", func(t *testing.T) {
		rows := contender.Of(modes)
		i := slices.IndexFunc(rows, func(r contender.Row) bool { return r.Name == "quic" })
		if i < 0 || rows[i].About != planted.For || !rows[i].Sealable || rows[i].Needs() == nil {
			t.Errorf("%+v", rows)
		}
	})
	t.Run("documents", func(t *testing.T) {
		if text := modesReference(modes); !strings.Contains(text, "| `quic` | TUN → QUIC → AF_XDP | ipudp | 443 | the daemon; can seal; past nftables | tun device, nosuchability | streams |\n") {
			t.Error(text)
		}
		if text := modesREADME(modes); !strings.Contains(text, "| `quic` | TUN → QUIC → AF_XDP | what nobody has built |\n") {
			t.Error(text)
		}
	})
}

func parse(t *testing.T, built config.Built, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("weft.yaml", []byte(text), built)
	if err == nil {
		err = c.Detect(config.Host{Name: func() (string, error) { return "a", nil }, CPUs: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}
