package nettest

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A Feature is something that not every kernel has.
type Feature string

// The features RequireKernel knows.
const (
	Veth      Feature = "veth"
	Vxlan     Feature = "vxlan"
	Bridge    Feature = "bridge"
	WireGuard Feature = "wireguard"
	TUN       Feature = "tun"
	XDP       Feature = "af_xdp"
	NFTables  Feature = "nftables"
	UDPGSO    Feature = "udp-gso"
	UDPGRO    Feature = "udp-gro"
)

// Probe returns nil where this kernel has the feature, else why not.
func Probe(f Feature) error {
	switch f {
	case Veth, Vxlan, Bridge, WireGuard:
		return probeLink(f)
	case TUN:
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return closing(fd, "open /dev/net/tun", err)
	case XDP:
		fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return closing(fd, "AF_XDP socket", err)
	case NFTables:
		if _, err := os.Stat("/sys/module/nf_tables"); err != nil {
			return fmt.Errorf("nf_tables is neither loaded nor built in: %w", err)
		}
		return nil
	case UDPGSO:
		return probeUDP(unix.UDP_SEGMENT)
	case UDPGRO:
		return probeUDP(unix.UDP_GRO)
	}
	return fmt.Errorf("no probe for kernel feature %q", f)
}

func closing(fd int, op string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return unix.Close(fd)
}

// probeUDP asks for a UDP socket option's current value: ENOPROTOOPT where the kernel lacks it.
func probeUDP(option int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("UDP socket: %w", err)
	}
	_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, option)
	return errors.Join(err, unix.Close(fd))
}

// probeLink makes a device of the kind in a namespace of its own.
func probeLink(f Feature) error {
	ns, err := Create(testPrefix)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe0"
	var l netlink.Link
	switch f {
	case Veth:
		v := netlink.NewVeth(attrs)
		v.PeerName = "probe1"
		l = v
	case Vxlan:
		l = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789}
	case Bridge:
		l = &netlink.Bridge{LinkAttrs: attrs}
	default:
		l = &netlink.GenericLink{LinkAttrs: attrs, LinkType: string(f)}
	}
	err = ns.Netlink().LinkAdd(l)
	if err != nil {
		err = fmt.Errorf("make a %s device: %w", f, err)
	}
	return errors.Join(err, ns.Close())
}
