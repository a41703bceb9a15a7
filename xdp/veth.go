package xdp

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerSuffix makes the name of the port's device from that of the inside interface.
const peerSuffix = "-x"

// veth is the inside interface and its peer, the port's device.
type veth struct {
	name, peer       string
	index, peerIndex int
	mac, peerMAC     [6]byte // of name, of peer
}

// makeVeth makes the inside interface and its peer, both up.
//
// The interface does no ARP and no neighbour discovery (IFF_NOARP): every destination has a link address at once, and
// nobody asks a question that the port would have to answer. Checksums, segmentation and VLAN tags are finished before
// a frame enters: XDP would see them undone.
//
// A pair of this name that exists is what a killed process left, and is made anew.
func makeVeth(h *netlink.Handle, et ethtool, name string, mtu, queues int) (v *veth, err error) {
	v = &veth{name: name, peer: name + peerSuffix}
	if len(v.peer) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("inside interface %q: its peer's name %q is longer than %d characters", name, v.peer, unix.IFNAMSIZ-1)
	}
	if err := removeOld(h, v.name, v.peer); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = v.name, mtu
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU = v.peer, uint32(mtu)
	pair.PeerNumTxQueues, pair.PeerNumRxQueues = uint32(queues), uint32(queues)
	if err := h.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("make veth %s: %w: run as root or grant CAP_NET_ADMIN", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.remove(h))
			v = nil
		}
	}()
	for _, end := range []struct {
		name  string
		index *int
		mac   *[6]byte
	}{{v.name, &v.index, &v.mac}, {v.peer, &v.peerIndex, &v.peerMAC}} {
		l, err := h.LinkByName(end.name)
		if err != nil {
			return v, fmt.Errorf("find %s: %w", end.name, err)
		}
		*end.index = l.Attrs().Index
		copy(end.mac[:], l.Attrs().HardwareAddr)
		if err := h.LinkSetARPOff(l); err != nil {
			return v, fmt.Errorf("switch ARP off on %s: %w", end.name, err)
		}
	}
	if err := et.set(v.name, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return v, fmt.Errorf("switch tx checksum offload off on %s: %w", v.name, err)
	}
	if err := et.clearFlag(v.name, flagTXVLAN); err != nil {
		return v, fmt.Errorf("switch VLAN offload off on %s: %w", v.name, err)
	}
	// The host's stack has no business on the port's end: without this it would send router solicitations there.
	err = os.WriteFile("/proc/sys/net/ipv6/conf/"+v.peer+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return v, fmt.Errorf("switch IPv6 off on %s: %w", v.peer, err)
	}
	for _, index := range []int{v.peerIndex, v.index} {
		if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}); err != nil {
			return v, fmt.Errorf("set %s up: %w", v.name, err)
		}
	}
	return v, nil
}

// removeOld deletes a veth pair of these names; anything else of the name is an error.
func removeOld(h *netlink.Handle, name, peer string) error {
	l, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	other, err := h.LinkByName(peer)
	if err != nil || l.Type() != "veth" || other.Attrs().Index != l.Attrs().ParentIndex {
		return fmt.Errorf("an interface %s exists and is not weft's (a %s without peer %s): remove it with `ip link del %s`",
			name, l.Type(), peer, name)
	}
	if x := other.Attrs().Xdp; x != nil && x.Attached {
		if err := refuseForeign(h, other.Attrs().Index, peer); err != nil {
			return err
		}
	}
	if err := h.LinkDel(l); err != nil {
		return fmt.Errorf("remove the old %s: %w", name, err)
	}
	return nil
}

func (v *veth) remove(h *netlink.Handle) error {
	err := h.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: v.name, Index: v.index}})
	if errors.Is(err, unix.ENODEV) {
		return nil // somebody else removed it
	}
	return err
}
