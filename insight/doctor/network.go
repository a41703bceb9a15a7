package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft/api"
	"weft/catalog/mode"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/config"
)

// sysctls is where the network's settings are; they belong to the network namespace.
const sysctls = "/proc/sys/net"

func sysctl(key string) (string, error) {
	data, err := os.ReadFile(filepath.Join(sysctls, key))
	return strings.TrimSpace(string(data)), err
}

// underlay finds the device that carries the tunnel, and what fits through it: by what the daemon knows of the cluster where it runs,
// else by what the configuration's source tells.
func underlay(p Subject, s api.Status, known []api.Peer) []Finding {
	const name = "underlay"
	h, err := hostnet.New(nil)
	if err != nil {
		return []Finding{{name, Wrong, err.Error(), "run as root"}}
	}
	defer h.Close()
	self, nodes := p.Self, p.Nodes
	if len(s.Endpoints) > 0 {
		self.Endpoints, nodes = s.Endpoints, nil
		for _, peer := range known {
			if !peer.Reached() {
				continue
			}
			nodes = append(nodes, control.Node{Name: peer.Node, Endpoints: []netip.Addr{peer.Endpoint.Addr()}})
		}
	}
	var network []netip.Prefix
	var choice egress.Choice
	m, _ := mode.Find(p.Modes, mode.Default)
	sealed := false
	if c := p.Config; c != nil {
		network, choice = c.Network.Prefixes, egress.Choice{Interface: c.Node.Interface, MTU: c.Node.MTU}
		m, sealed = c.Mode, c.Encryption.Cipher != config.CipherNone
	}
	if len(self.Endpoints) == 0 {
		if self.Endpoints, err = h.Endpoints(choice.Interface); err != nil {
			return []Finding{{name, Wrong, err.Error(), "give the node an address others can reach, or set node.interface"}}
		}
	}
	u, err := egress.NewFinder(h, choice).Derive(self, nodes)
	if err != nil {
		return []Finding{{name, Wrong, err.Error(), "give the node an address others can reach, or set node.interface"}}
	}
	list := []Finding{{name, OK, fmt.Sprintf("%s, MTU %d", u.Device, u.MTU), ""}}
	inner := m.Wire.InnerMTU(u.MTU, u.V6(), sealed)
	if lacks := u.Lacks(inner, network); lacks > 0 {
		list[0].Level = Wrong
		list[0].Found += fmt.Sprintf(" leaves %d bytes inside, %d are needed", inner, inner+lacks)
		list[0].Remedy = fmt.Sprintf("raise the MTU of %s to %d", u.Device, u.MTU+lacks)
	}
	for _, device := range u.Devices {
		list = append(list, pathFilter(device))
	}
	return list
}

// detours names rules of others by which packets to the overlay go past its routes, and past the guard that keeps them from leaving in clear.
func detours(p Subject) []Finding {
	const name = "routing rules"
	if p.Config == nil {
		return nil
	}
	h, err := hostnet.New(nil)
	if err != nil {
		return nil // underlay says so
	}
	defer h.Close()
	open, guarded, err := h.Detours(p.Config.Network.Prefixes)
	if err != nil {
		return []Finding{{name, Wrong, err.Error(), "run as root"}}
	}
	var list []Finding
	for _, rule := range open {
		list = append(list, Finding{name, Wrong, fmt.Sprintf("%q comes before the main table's: packets to the overlay may follow it, and leave in clear", rule),
			"start the daemon, which puts a rule of its own before it; where it runs, give that rule another priority: weft's come next behind the local table's"})
	}
	for _, rule := range guarded {
		list = append(list, Finding{name, OK, fmt.Sprintf("packets to the overlay do not follow %q: a rule of weft's comes first", rule), ""})
	}
	return list
}

// pathFilter warns of strict reverse path filtering: where a reply may take another way than the
// packet it answers, the kernel drops tunnel packets without a word.
func pathFilter(device string) Finding {
	const name = "rp_filter"
	all, err := sysctl("ipv4/conf/all/rp_filter")
	own, err2 := sysctl("ipv4/conf/" + strings.ReplaceAll(device, "/", ".") + "/rp_filter")
	if err := errors.Join(err, err2); err != nil {
		return Finding{name, Note, err.Error(), "mount /proc/sys"}
	}
	if mode := max(all, own); mode == "1" { // one digit each; the kernel uses the larger
		return Finding{name, Note, "strict on " + device,
			fmt.Sprintf("where the underlay is routed asymmetrically: sysctl -w net.ipv4.conf.%s.rp_filter=2", device)}
	}
	return Finding{name, OK, "not strict on " + device, ""}
}

// forwarding says whether the node passes packets on; the daemon turns it on where it is off and the overlay needs it.
func forwarding(p Subject) []Finding {
	needs := func(v6 bool) bool {
		return p.Config == nil || slices.ContainsFunc(p.Config.Network.Prefixes, func(n netip.Prefix) bool { return n.Addr().Is6() == v6 })
	}
	var list []Finding
	for name, key := range map[string]string{"forwarding v4": "ipv4/ip_forward", "forwarding v6": "ipv6/conf/all/forwarding"} {
		switch v, err := sysctl(key); {
		case errors.Is(err, fs.ErrNotExist): // a kernel without the family; ipv6 says so
		case err != nil:
			list = append(list, Finding{name, Note, err.Error(), "mount /proc/sys"})
		case v == "0" && !needs(name == "forwarding v6"):
			list = append(list, Finding{name, OK, "off, and network.prefixes need none", ""})
		case v == "0":
			list = append(list, Finding{name, Note, "off", "nothing to do: the daemon turns it on"})
		default:
			list = append(list, Finding{name, OK, "on", ""})
		}
	}
	if len(list) == 2 && list[0].Name > list[1].Name {
		list[0], list[1] = list[1], list[0]
	}
	return list
}

// ipv6 says whether the kernel has the family, and it is switched on.
func ipv6(p Subject) Finding {
	const name = "ipv6"
	level := Note
	if p.Config != nil && hasIPv6(p.Config.Network.Prefixes) {
		level = Missing
	}
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); err != nil {
		return Finding{name, level, "the kernel has none", "boot without ipv6.disable=1, or use IPv4 prefixes only"}
	}
	if v, err := sysctl("ipv6/conf/all/disable_ipv6"); err == nil && v == "1" {
		return Finding{name, level, "switched off", "sysctl -w net.ipv6.conf.all.disable_ipv6=0"}
	}
	if v, err := sysctl("ipv6/conf/default/disable_ipv6"); err == nil && v == "1" {
		return Finding{name, Note, "on, but new devices begin without it (net.ipv6.conf.default.disable_ipv6=1)", "nothing to do: the daemon turns it on for its own devices; others' are as the machine makes them"}
	}
	return Finding{name, OK, "on", ""}
}

func hasIPv6(prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}
