// Package kernel finds out what the running kernel can do, by trying it. Nothing it tries is left behind: devices are made in a
// network namespace that nobody else sees.
package kernel

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"unsafe"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ability is something that not every kernel, or not every user, can do.
type Ability string

// Abilities. Those of network devices have the names of their kinds (`ip link add type …`).
const (
	TUN        Ability = "tun"
	AFXDP      Ability = "af_xdp"
	NFTables   Ability = "nftables"
	TCX        Ability = "tcx"
	UDPSegment Ability = "udp-segment"
	UDPGRO     Ability = "udp-gro"
	ESP        Ability = "esp" // with AES-GCM

	Veth      Ability = "veth"
	Bridge    Ability = "bridge"
	VXLAN     Ability = "vxlan"
	WireGuard Ability = "wireguard"
	Geneve    Ability = "geneve"
	IPIP      Ability = "ipip"
	SIT       Ability = "sit"
)

// known says of an ability how it is tried, and what to do where it lacks.
type known struct {
	ability Ability
	what    string // the thing, in words
	try     func() error
	remedy  string
}

// table lists the abilities, in the order in which people are told of them.
func table() []known {
	list := []known{
		{TUN, "tun device", tryTUN, "modprobe tun; in a container, pass in /dev/net/tun"},
		{VXLAN, "vxlan device", nil, "modprobe vxlan, or a kernel with CONFIG_VXLAN; userspace modes do without"},
		{AFXDP, "af_xdp socket", tryAFXDP, "a kernel with CONFIG_XDP_SOCKETS and CONFIG_BPF_SYSCALL, and CAP_NET_RAW"},
		{NFTables, "nftables", tryNFTables, "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES"},
		{TCX, "BPF at devices (tcx)", tryTCX, "Linux 6.6 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS"},
		{UDPSegment, "UDP segmentation", tryUDP(unix.UDP_SEGMENT), "Linux 4.18 or newer"},
		{UDPGRO, "UDP receive coalescing", tryUDP(unix.UDP_GRO), "Linux 5.0 or newer"},
		{ESP, "IPsec", tryESP, "modprobe esp4, or a kernel with CONFIG_INET_ESP and CONFIG_CRYPTO_GCM"},
		{Veth, "veth device", nil, "modprobe veth, or a kernel with CONFIG_VETH"},
		{Bridge, "bridge device", nil, "modprobe bridge, or a kernel with CONFIG_BRIDGE"},
		{WireGuard, "wireguard device", nil, "modprobe wireguard, or a kernel with CONFIG_WIREGUARD"},
		{Geneve, "geneve device", nil, "modprobe geneve, or a kernel with CONFIG_GENEVE"},
		{IPIP, "ipip device", nil, "modprobe ipip, or a kernel with CONFIG_NET_IPIP"},
		{SIT, "sit device", nil, "modprobe sit, or a kernel with CONFIG_IPV6_SIT"},
	}
	for i := range list {
		if list[i].try == nil {
			list[i].try = tryLink(string(list[i].ability))
		}
	}
	return list
}

func find(a Ability) known {
	list := table()
	i := slices.IndexFunc(list, func(k known) bool { return k.ability == a })
	if i < 0 {
		return known{a, string(a), func() error { return errors.New("nobody knows how to try it") }, "see `weft version`"}
	}
	return list[i]
}

// String says what it is, in words.
func (a Ability) String() string { return find(a).what }

// Remedy says what to do where it lacks.
func (a Ability) Remedy() string { return find(a).remedy }

// Probe returns nil where this works here and now, else why it does not, without a remedy.
func (a Ability) Probe() error { return find(a).try() }

// Need says what the first of them lacks that does not work, with its remedy; nil where all do.
func Need(all ...Ability) error {
	for _, a := range all {
		if err := a.Probe(); err != nil {
			return fmt.Errorf("%w: %s", err, a.Remedy())
		}
	}
	return nil
}

// tryTUN opens the control device and asks what it can do; that makes no interface.
func tryTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES); err != nil {
		return fmt.Errorf("ioctl TUNGETFEATURES: %w", err)
	}
	return nil
}

func tryAFXDP() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("AF_XDP socket: %w", err)
	}
	return unix.Close(fd)
}

func tryNFTables() error {
	return apart(func() error {
		c, err := nftables.New()
		if err == nil {
			_, err = c.ListTables()
		}
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		return nil
	})
}

// tryTCX asks what is at a hook (BPF_PROG_QUERY, union bpf_attr in linux/bpf.h).
func tryTCX() error {
	return apart(func() error {
		query := struct {
			ifindex, hook, flags, attached uint32
			programs                       uint64
			count, _                       uint32
			_, _, _                        uint64
			revision                       uint64
		}{ifindex: 1, hook: unix.BPF_TCX_INGRESS} // of the loopback device, which every namespace has
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query))
		switch errno {
		case 0:
			return nil
		case unix.EINVAL:
			return fmt.Errorf("this kernel has no tcx: %w", unix.EOPNOTSUPP)
		}
		return fmt.Errorf("ask for programs at a device: %w", errno)
	})
}

// tryUDP asks for a UDP socket option's value: ENOPROTOOPT where the kernel lacks it.
func tryUDP(option int) func() error {
	return func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("UDP socket: %w", err)
		}
		_, err = unix.GetsockoptInt(fd, unix.SOL_UDP, option)
		return errors.Join(err, unix.Close(fd))
	}
}

// tryLink asks for a device of a kind.
func tryLink(kind string) func() error {
	return func() error {
		return apart(func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("netlink: %w", err)
			}
			defer h.Close()
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "probe0"
			switch err := h.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}); {
			case errors.Is(err, unix.EOPNOTSUPP):
				return fmt.Errorf("this kernel has no %s devices: %w", kind, err)
			case err != nil && !errors.Is(err, unix.EINVAL): // it wants parameters: it is known
				return fmt.Errorf("make a %s device: %w", kind, err)
			}
			return nil
		})
	}
}

// tryESP adds a state of ESP (RFC 4303) with AES-GCM (RFC 4106: the key, and four bytes of salt).
func tryESP() error {
	return apart(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_XFRM)
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		defer h.Close()
		err = h.XfrmStateAdd(&netlink.XfrmState{
			Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: 1,
			Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 16+4), ICVLen: 128},
		})
		if err != nil {
			return fmt.Errorf("add a state of ESP with AES-GCM: %w", err)
		}
		return nil
	})
}

// apart calls try in a network namespace of its own, which ends with it.
func apart(try func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace to try in, as root: %w", err)
			return
		}
		done <- try()
	}()
	return <-done
}
