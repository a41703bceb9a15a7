package hostnet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Way is the kernel's decision where a packet goes.
type Way struct {
	Type   string     // unicast, local, broadcast, multicast, unreachable, blackhole, prohibit
	Dev    string     // "" where there is none
	Via    netip.Addr // the next hop; invalid = the destination itself is on the link
	Source netip.Addr // the kernel's choice for packets of its own
	Table  int
	MTU    int // of the route, bytes; 0 = the device's
}

var routeTypes = map[int]string{unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_MULTICAST: "multicast",
	unix.RTN_UNREACHABLE: "unreachable", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_PROHIBIT: "prohibit"}

// Way asks the kernel for its route (RTM_GETROUTE): of a packet that comes in by iif from src, or, where iif is "", of one of its own.
// The routes that refuse packets are an error too, in the kernel's words; EXDEV is its refusal of a source (rp_filter).
func (h *Host) Way(dst, src netip.Addr, iif string) (Way, error) {
	o := &netlink.RouteGetOptions{Iif: iif}
	if src.IsValid() {
		o.SrcAddr = ipOf(src)
	}
	routes, err := h.rt.RouteGetWithOptions(ipOf(dst), o)
	if err != nil {
		return Way{}, err
	}
	if len(routes) == 0 {
		return Way{}, unix.ENETUNREACH
	}
	r := routes[0]
	w := Way{Type: routeTypes[r.Type], Table: r.Table, MTU: r.MTU}
	if r.Gw != nil {
		w.Via = ipnet.Addr(r.Gw)
	} else if via, ok := r.Via.(*netlink.Via); ok {
		w.Via = ipnet.Addr(via.Addr)
	}
	if r.Src != nil {
		w.Source = ipnet.Addr(r.Src)
	}
	if l, err := h.rt.LinkByIndex(r.LinkIndex); err == nil {
		w.Dev = l.Attrs().Name
	}
	return w, nil
}

// Exit is one way by which packets of this node's own leave it.
type Exit struct {
	Index int        // of the device
	Via   netip.Addr // the router; invalid = the destination is on the link
	MTU   int        // that the route itself says, bytes; 0 = the device's
}

// Exits asks the kernel for the route that its tables have for packets from src, one of its own addresses, to dst
// (RTM_F_FIB_MATCH): all next hops of it, and without what was learnt of the path. A route that refuses is an error.
func (h *Host) Exits(dst, src netip.Addr) ([]Exit, error) {
	routes, err := h.rt.RouteGetWithOptions(ipOf(dst), &netlink.RouteGetOptions{SrcAddr: ipOf(src), FIBMatch: true})
	if err != nil {
		return nil, fmt.Errorf("hostnet: route from %v to %v: %w", src, dst, err)
	}
	var exits []Exit
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST {
			return nil, fmt.Errorf("hostnet: route from %v to %v: it is %s", src, dst, routeTypes[r.Type])
		}
		if len(r.MultiPath) == 0 {
			exits = append(exits, Exit{r.LinkIndex, nextHop(r.Gw, r.Via), r.MTU})
		}
		for _, n := range r.MultiPath {
			exits = append(exits, Exit{n.LinkIndex, nextHop(n.Gw, n.Via), r.MTU})
		}
	}
	if len(exits) == 0 {
		return nil, fmt.Errorf("hostnet: route from %v to %v: %w", src, dst, unix.ENETUNREACH)
	}
	return exits, nil
}

// PathMTU returns what the kernel knows of how large packets from src, one of this node's own addresses, to dst may be, bytes: by the route,
// or by what routers have said meanwhile (route exceptions, RFC 1191 and 8201), which it forgets after net.ipv4.route.mtu_expires. 0 = no
// less than the device carries.
func (h *Host) PathMTU(dst, src netip.Addr) int {
	routes, err := h.rt.RouteGetWithOptions(ipOf(dst), &netlink.RouteGetOptions{SrcAddr: ipOf(src)})
	if err != nil || len(routes) == 0 {
		return 0
	}
	return routes[0].MTU
}

func nextHop(gw net.IP, via netlink.Destination) netip.Addr {
	if v, ok := via.(*netlink.Via); ok {
		return ipnet.Addr(v.Addr)
	}
	return ipnet.Addr(gw)
}

// Device is an interface as it is now.
type Device struct {
	Name  string
	Index int
	Kind  string // tun, veth, vxlan, …
	MTU   int    // bytes
	MAC   [6]byte
	Up    bool
	Inert bool // loopback, dummy, or the loopback of a VRF: it holds addresses, and leads nowhere
	VNI   int  // of a vxlan device
	Port  int  // of a vxlan device
}

func deviceOf(l netlink.Link) Device {
	is := l.Attrs()
	d := Device{Name: is.Name, Index: is.Index, Kind: l.Type(), MTU: is.MTU, MAC: macOf(is.HardwareAddr), Up: is.Flags&net.FlagUp != 0,
		Inert: is.Flags&net.FlagLoopback != 0 || slices.Contains([]string{"dummy", "vrf"}, l.Type())}
	if v, ok := l.(*netlink.Vxlan); ok {
		d.VNI, d.Port = v.VxlanId, v.Port
	}
	return d
}

// Device looks at an interface.
func (h *Host) Device(name string) (Device, error) {
	l, err := h.linkByName(name)
	if err != nil {
		return Device{}, fmt.Errorf("hostnet: %w", err)
	}
	return deviceOf(l), nil
}

// DeviceAt looks at an interface by its number.
func (h *Host) DeviceAt(index int) (Device, error) {
	l, err := h.rt.LinkByIndex(index)
	if err != nil {
		return Device{}, fmt.Errorf("hostnet: device number %d: %w", index, err)
	}
	return deviceOf(l), nil
}

// Holders returns the numbers of the devices that each address of this node is on: one, as a rule.
func (h *Host) Holders() (map[netip.Addr][]int, error) {
	table, err := dumpAddrs(h.rt)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	on := make(map[netip.Addr][]int, len(table))
	for _, k := range table {
		on[ipnet.Addr(k.IP)] = append(on[ipnet.Addr(k.IP)], k.LinkIndex)
	}
	return on, nil
}

var neighborStates = []struct {
	bit  int
	name string
}{
	{netlink.NUD_PERMANENT, "permanent"}, {netlink.NUD_NOARP, "noarp"}, {netlink.NUD_REACHABLE, "reachable"}, {netlink.NUD_STALE, "stale"}, {netlink.NUD_DELAY, "delay"},
	{netlink.NUD_PROBE, "probe"}, {netlink.NUD_INCOMPLETE, "incomplete"}, {netlink.NUD_FAILED, "failed"},
}

// NeighborOf returns the neighbour entry (ARP, NDP) of an address on a device, and its state as `ip neigh` has it; "none" where
// there is no entry (yet).
func (h *Host) NeighborOf(dev string, a netip.Addr) (mac [6]byte, state string, err error) {
	l, err := h.linkByName(dev)
	if err != nil {
		return mac, "", fmt.Errorf("hostnet: %w", err)
	}
	table, err := dump(func() ([]netlink.Neigh, error) { return h.rt.NeighList(l.Attrs().Index, family(a)) })
	if err != nil {
		return mac, "", fmt.Errorf("hostnet: list neighbours: %w", err)
	}
	for _, n := range table {
		if n.IP == nil || ipnet.Addr(n.IP) != a {
			continue
		}
		for _, s := range neighborStates {
			if n.State&s.bit != 0 {
				return macOf(n.HardwareAddr), s.name, nil
			}
		}
	}
	return mac, "none", nil
}

// FDBOf returns the tunnel endpoints that frames to a MAC go to on a VXLAN device.
func (h *Host) FDBOf(dev string, mac [6]byte) ([]netip.Addr, error) {
	l, err := h.linkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	table, err := dump(func() ([]netlink.Neigh, error) { return h.rt.NeighList(l.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("hostnet: list forwarding entries: %w", err)
	}
	var to []netip.Addr
	for _, n := range table {
		if n.IP != nil && bytes.Equal(n.HardwareAddr, mac[:]) {
			to = append(to, ipnet.Addr(n.IP))
		}
	}
	return to, nil
}

// Chain is an nftables base chain: where packets meet rules.
type Chain struct {
	Name   string // family, table and chain
	Policy string // accept or drop
	Rules  int
}

// Chains returns the base chains at a hook ("prerouting", "input", "forward", "output", "postrouting") that packets of this IP version
// pass, in no order. What a rule does to a packet it does not say.
func (h *Host) Chains(hook string, v6 bool) ([]Chain, error) {
	number, ok := map[string]nftables.ChainHook{"prerouting": *nftables.ChainHookPrerouting, "input": *nftables.ChainHookInput,
		"forward": *nftables.ChainHookForward, "output": *nftables.ChainHookOutput, "postrouting": *nftables.ChainHookPostrouting}[hook]
	if !ok {
		return nil, fmt.Errorf("hostnet: no hook %q", hook)
	}
	conn, err := h.connect()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	chains, err := listChains(conn)
	if err != nil {
		return nil, err
	}
	own := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip"}
	if v6 {
		own = map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv6: "ip6"}
	}
	var found []Chain
	for _, c := range chains {
		fam, ok := own[c.Table.Family]
		if !ok || c.Hooknum == nil || *c.Hooknum != number {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("hostnet: list nftables rules: %w%s", err, hint(err))
		}
		policy := "accept"
		if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			policy = "drop"
		}
		found = append(found, Chain{fam + " " + c.Table.Name + " " + c.Name, policy, len(rules)})
	}
	return found, nil
}

// Forwards says whether packets that come in by a device are forwarded.
func (h *Host) Forwards(dev string, v6 bool) (bool, error) {
	fam := "ipv4"
	if v6 {
		fam = "ipv6"
	}
	value, err := h.sysctls.get(fam + "/conf/" + dev + "/forwarding")
	if err != nil {
		return false, fmt.Errorf("hostnet: forwarding by %s: %w", dev, err)
	}
	return value != "0", nil
}
