package hostnet

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Neighbor is a permanent neighbour (ARP, NDP) entry on a device of ours.
type Neighbor struct {
	Dev string
	IP  netip.Addr
	MAC [6]byte

	odd bool // proxied, or learnt over the wire
}

// FDBEntry is a static forwarding entry of a VXLAN device: frames to MAC go to the tunnel endpoint Remote.
type FDBEntry struct {
	Dev    string
	MAC    [6]byte
	Remote netip.Addr

	odd bool // not permanent, or with attributes that weft never sets
}

type neighborKey struct {
	dev string
	ip  netip.Addr
}

type fdbKey struct {
	dev string
	mac [6]byte
}

func (n Neighbor) key() neighborKey { return neighborKey{n.Dev, n.IP} }
func (n Neighbor) device() string   { return n.Dev }
func (n Neighbor) shared() bool     { return false }

func (f FDBEntry) key() fdbKey    { return fdbKey{f.Dev, f.MAC} }
func (f FDBEntry) device() string { return f.Dev }
func (f FDBEntry) shared() bool   { return false }

func (n Neighbor) String() string {
	return fmt.Sprintf("neighbour %s lladdr %s dev %s", n.IP, macString(n.MAC), n.Dev)
}

func (f FDBEntry) String() string {
	return fmt.Sprintf("fdb %s dst %s dev %s", macString(f.MAC), f.Remote, f.Dev)
}

func (n Neighbor) kernel(index int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: family(n.IP), State: netlink.NUD_PERMANENT, IP: ipOf(n.IP), HardwareAddr: n.MAC[:],
	}
}

func (f FDBEntry) kernel(index int) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: ipOf(f.Remote), HardwareAddr: f.MAC[:],
	}
}

func addNeigh(rt *handle, k *netlink.Neigh, replace bool) error {
	if replace {
		return rt.NeighSet(k)
	}
	return rt.NeighAdd(k)
}

func (n Neighbor) add(rt *handle, index int, replace bool) error {
	return addNeigh(rt, n.kernel(index), replace)
}

func (n Neighbor) remove(rt *handle, index int) error { return rt.NeighDel(n.kernel(index)) }
func (n Neighbor) evict(rt *handle, index int) error  { return n.remove(rt, index) }

func (f FDBEntry) add(rt *handle, index int, replace bool) error {
	return addNeigh(rt, f.kernel(index), replace)
}

func (f FDBEntry) remove(rt *handle, index int) error {
	if f.odd { // the library could not name it exactly; weft has one destination for a MAC anyway
		return f.evict(rt, index)
	}
	return rt.NeighDel(f.kernel(index))
}

func (f FDBEntry) evict(rt *handle, index int) error {
	f.Remote = netip.IPv4Unspecified() // stands for all of the MAC's destinations
	return rt.NeighDel(f.kernel(index))
}

// dumpNeighbors returns the permanent neighbours on the devices with names.
func dumpNeighbors(rt *handle, names map[int]string) (list []Neighbor, err error) {
	table, err := dumpBoth(func(fam int) ([]netlink.Neigh, error) { return rt.NeighList(0, fam) })
	for _, k := range table {
		if n, permanent := neighborFrom(k, names); permanent {
			list = append(list, n)
		}
	}
	return list, err
}

// neighborFrom turns the kernel's entry on one of the devices into a Neighbor; false for one that is not permanent, or on
// another device.
func neighborFrom(k netlink.Neigh, names map[int]string) (n Neighbor, permanent bool) {
	dev, ok := names[k.LinkIndex]
	if !ok || k.IP == nil {
		return n, false
	}
	odd := k.Flags&(netlink.NTF_PROXY|netlink.NTF_EXT_LEARNED) != 0
	return Neighbor{Dev: dev, IP: ipnet.Addr(k.IP), MAC: macOf(k.HardwareAddr), odd: odd}, k.State == netlink.NUD_PERMANENT
}

// dumpFDB returns the forwarding entries of the VXLAN devices with names.
func dumpFDB(rows func() ([]fdbRow, error), names map[int]string) (list []FDBEntry, err error) {
	table, err := dump(rows)
	for _, k := range table {
		if e, ok := fdbFrom(k, names); ok {
			list = append(list, e)
		}
	}
	return list, err
}

// fdbFrom turns the kernel's entry on one of the devices into an FDBEntry; false for what is none.
func fdbFrom(k fdbRow, names map[int]string) (FDBEntry, bool) {
	dev, ok := names[k.LinkIndex]
	// A device's own multicast and unicast filters are listed too, without a destination; they are not FDB.
	if !ok || k.Flags&netlink.NTF_SELF == 0 || k.Flags&netlink.NTF_MASTER != 0 || k.IP == nil && !k.diverted {
		return FDBEntry{}, false
	}
	return FDBEntry{
		Dev: dev, MAC: macOf(k.HardwareAddr), Remote: ipnet.Addr(k.IP),
		odd: k.State&netlink.NUD_PERMANENT == 0 || k.Flags&netlink.NTF_EXT_LEARNED != 0 || k.VNI != 0 || k.diverted,
	}, true
}
