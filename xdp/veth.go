package xdp

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/holder"
)

// peerSuffix makes the name of the port's device from that of the inside interface.
const peerSuffix = "-x"

// veth is the inside interface and its peer, the port's device.
type veth struct {
	name, peer       string
	index, peerIndex int
	mac, peerMAC     [6]byte // of name, of peer
}

// makeVeth makes the inside interface in the calling thread's network namespace and its peer in another, both up.
//
// The peer's namespace is the process's own, and so the pair goes when the process dies, as a TUN does: the kernel's
// routes into it go with it, and what would be lost without a word is refused.
//
// The interface does no ARP and no neighbour discovery (IFF_NOARP): every destination has a link address at once, and
// nobody asks a question that the port would have to answer. Checksums, segmentation and VLAN tags are finished before
// a frame enters: XDP would see them undone.
func makeVeth(h *netlink.Handle, et ethtool, name string, mtu, queues int, ns netns) (v *veth, err error) {
	v = &veth{name: name, peer: name + peerSuffix}
	if len(v.peer) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("inside interface %q: its peer's name %q is longer than %d characters", name, v.peer, unix.IFNAMSIZ-1)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = v.name, mtu
	attrs.NumTxQueues, attrs.NumRxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU, pair.PeerNamespace = v.peer, uint32(mtu), netlink.NsFd(ns.fd)
	pair.PeerNumTxQueues, pair.PeerNumRxQueues = uint32(queues), uint32(queues)
	if err := addVeth(h, pair); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.remove(h))
			v = nil
		}
	}()
	if v.index, v.mac, err = prepareEnd(h, v.name); err != nil {
		return v, err
	}
	if err := et.set(v.name, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return v, fmt.Errorf("switch tx checksum offload off on %s: %w", v.name, err)
	}
	if err := et.clearFlag(v.name, flagTXVLAN); err != nil {
		return v, fmt.Errorf("switch VLAN offload off on %s: %w", v.name, err)
	}
	return v, ns.do(func() error { return v.preparePeer() })
}

// addVeth makes the pair. One of the name that exists is another weft's, or that of a killed process, which goes as soon as
// the kernel has cleaned up.
func addVeth(h *netlink.Handle, pair *netlink.Veth) error {
	for deadline := time.Now().Add(bindPatience); ; time.Sleep(10 * time.Millisecond) {
		err := h.LinkAdd(pair)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST) && time.Now().Before(deadline):
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("make veth %[1]s: %[2]w: it exists already and is %[3]s: stop the weft that has it, or rename it, or remove it with `ip link del %[1]s`", pair.Name, err, holder.Device(pair.Name))
		default:
			return fmt.Errorf("make veth %s: %w: run as root or grant CAP_NET_ADMIN", pair.Name, err)
		}
	}
}

// prepareEnd sets one end up.
func prepareEnd(h *netlink.Handle, name string) (index int, mac [6]byte, err error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return 0, mac, fmt.Errorf("find %s: %w", name, err)
	}
	copy(mac[:], l.Attrs().HardwareAddr)
	if err := h.LinkSetARPOff(l); err != nil {
		return 0, mac, fmt.Errorf("switch ARP off on %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return 0, mac, fmt.Errorf("set %s up: %w", name, err)
	}
	return l.Attrs().Index, mac, nil
}

func (v *veth) preparePeer() error {
	// No stack has business on the port's end: without this it would send router solicitations there.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+v.peer+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("switch IPv6 off on %s: %w", v.peer, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	v.peerIndex, v.peerMAC, err = prepareEnd(h, v.peer)
	return err
}

func (v *veth) remove(h *netlink.Handle) error {
	err := h.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: v.name, Index: v.index}})
	if errors.Is(err, unix.ENODEV) {
		return nil // somebody else removed it
	}
	return err
}
