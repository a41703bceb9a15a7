package hostnet

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Underlay returns the device that holds an address of this node, and the device's MTU in bytes.
func (h *Host) Underlay(addr netip.Addr) (iface string, mtu int, err error) {
	table, err := dumpAddrs(h.rt)
	if err != nil {
		return "", 0, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	i := slices.IndexFunc(table, func(a address) bool { return a.prefix.Addr() == addr.Unmap() })
	if i < 0 {
		return "", 0, fmt.Errorf("hostnet: no device has the address %s: set node.interface, or this node's endpoints to addresses it has", addr)
	}
	links, err := dumpLinks(h.rt)
	if err != nil {
		return "", 0, fmt.Errorf("hostnet: list links: %w", err)
	}
	for _, l := range links {
		if l.index == table[i].index {
			return l.name, l.mtu, nil
		}
	}
	return "", 0, fmt.Errorf("hostnet: the device with the address %s has just gone", addr)
}

// MTU returns a device's MTU in bytes.
func (h *Host) MTU(iface string) (int, error) {
	l, err := h.linkByName(iface)
	if err != nil {
		return 0, fmt.Errorf("hostnet: %w", err)
	}
	return l.mtu, nil
}

// Counters returns a device's lost packets.
func (h *Host) Counters(iface string) (Counters, error) {
	l, err := h.linkByName(iface)
	if err != nil {
		return Counters{}, fmt.Errorf("hostnet: %w", err)
	}
	return l.stats, nil
}

// Endpoints returns the addresses of this node that other nodes may send to, IPv4 first, each family in the
// kernel's order: those of iface, or where that is "", of the device of the best default route. Addresses that
// come and go (temporary, deprecated, tentative) or do not leave the link are left out.
func (h *Host) Endpoints(iface string) ([]netip.Addr, error) {
	if iface == "" {
		var err error
		if iface, err = h.defaultDevice(); err != nil {
			return nil, err
		}
	}
	l, err := h.linkByName(iface)
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	table, err := dumpAddrs(h.rt)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	const passing = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	var list []netip.Addr
	for _, a := range table {
		ip := a.prefix.Addr()
		temporary := ip.Is6() && a.flags&unix.IFA_F_TEMPORARY != 0 // for v4 the bit means "secondary"
		if a.index == l.index && a.flags&passing == 0 && !temporary && ip.IsGlobalUnicast() {
			list = append(list, ip)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("hostnet: %s has no address that other nodes could reach: set node.interface", iface)
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return list, nil
}

// defaultDevice returns the device of the default route with the lowest metric, of IPv4 where there is one.
func (h *Host) defaultDevice() (string, error) {
	links, err := dumpLinks(h.rt)
	if err != nil {
		return "", fmt.Errorf("hostnet: list links: %w", err)
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		best, metric := int32(0), uint32(math.MaxUint32)
		m := message{kind: unix.RTM_GETROUTE, body: make([]byte, sizeofRtMsg)}
		m.body[0] = fam
		m.u32(unix.RTA_TABLE, MainTable)
		routes, err := dump(h.rt, m, unix.RTM_NEWROUTE, func(b []byte) (r defaultRoute, ok bool) { return parseDefault(b, fam) })
		if err != nil {
			return "", fmt.Errorf("hostnet: list routes: %w", err)
		}
		for _, r := range routes {
			if best == 0 || r.metric < metric {
				best, metric = r.oif, r.metric
			}
		}
		for _, l := range links {
			if l.index == best && !Owned(l.name) {
				return l.name, nil
			}
		}
	}
	return "", fmt.Errorf("hostnet: no default route says which device leads to the other nodes: set node.interface")
}

type defaultRoute struct {
	oif    int32
	metric uint32
}

func parseDefault(b []byte, fam uint8) (r defaultRoute, ok bool) {
	if len(b) < sizeofRtMsg || b[0] != fam || b[1] != 0 || b[7] != unix.RTN_UNICAST {
		return r, false
	}
	table := uint32(b[4])
	for kind, v := range attrs(b[sizeofRtMsg:]) {
		switch kind {
		case unix.RTA_OIF:
			r.oif = int32(u32(v))
		case unix.RTA_PRIORITY:
			r.metric = u32(v)
		case unix.RTA_TABLE:
			table = u32(v)
		case unix.RTA_MULTIPATH: // rtnexthop: len 2 | flags 1 | hops 1 | ifindex 4; the first will do
			if len(v) >= 8 {
				r.oif = int32(native.Uint32(v[4:]))
			}
		}
	}
	return r, table == MainTable && r.oif != 0
}
