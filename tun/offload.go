package tun

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// offloads are the abilities of a device with virtio headers, in the order they are probed: the
// kernel takes segmentation offloads only together with CSUM.
var offloads = [...]struct {
	name string
	flag int   // linux/if_tun.h
	gso  uint8 // packets of this type may be written if it is there
}{
	{"csum", unix.TUN_F_CSUM, unix.VIRTIO_NET_HDR_GSO_NONE},
	{"tso4", unix.TUN_F_TSO4, unix.VIRTIO_NET_HDR_GSO_TCPV4},
	{"tso6", unix.TUN_F_TSO6, unix.VIRTIO_NET_HDR_GSO_TCPV6},
	{"tso-ecn", unix.TUN_F_TSO_ECN, unix.VIRTIO_NET_HDR_GSO_NONE},
	// Since Linux 6.2, which takes both or neither.
	{"uso4", unix.TUN_F_USO4 | unix.TUN_F_USO6, unix.VIRTIO_NET_HDR_GSO_UDP_L4},
	{"uso6", unix.TUN_F_USO4 | unix.TUN_F_USO6, unix.VIRTIO_NET_HDR_GSO_UDP_L4},
}

// queueLength is how many packets wait for a lane, super-packets counted as one. The kernel's default of 500 is
// full before a lane that shares its core with a sender gets its turn: a scheduler's tick is 1 to 4 ms, in
// which a sender makes more than 1000 small packets.
const queueLength = 2000

// OpenOffload makes the TUN device cfg.Name in the calling thread's network namespace, with a virtio
// header in front of every packet: the kernel then hands over and takes TCP and UDP super-packets of
// up to 64 KB. The port's packets are plain all the same: Recv cuts, Send joins. The port also is
// packet.KernelDrops, and packet.Features: which offloads this kernel has.
func OpenOffload(cfg Config, queues int) (packet.Port, error) {
	if err := cfg.check(queues); err != nil {
		return nil, err
	}
	stop, err := wait.NewStop()
	if err != nil {
		return nil, fmt.Errorf("tun: open %s: %w", cfg.Name, err)
	}
	p := &offload{plain: plain{name: cfg.Name, stop: stop}, features: map[string]string{}}
	if err := p.open(cfg, queues); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// offload is a plain port but for its queues, and what it knows about the kernel's abilities.
type offload struct {
	plain

	sendable atomic.Uint32 // bit 1<<gso: packets of this GSO type may be sent

	features   map[string]string
	featuresMu sync.Mutex
}

func (p *offload) open(cfg Config, queues int) error {
	for range queues {
		fd, err := attach(cfg.Name, queues > 1)
		if err != nil {
			return err
		}
		p.fds = append(p.fds, fd)
		dev := device(fd)
		p.queues = append(p.queues, &offloadQueue{
			name: cfg.Name, dev: dev,
			in: p.stop.Waiter(wait.Readable, fd), scatter: newScatter(cfg.MTU),
			out: p.stop.Gate(), gather: newGather(dev, cfg.MTU, p),
		})
	}
	if err := p.probe(); err != nil {
		return err
	}
	var err error
	if p.link, err = openLink(cfg.Name); err != nil {
		return err
	}
	return p.link.setQueue(queueLength)
}

// attach opens one queue of a device, which is made if it is not there.
func attach(name string, multi bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("tun: open /dev/net/tun: %w%s", err, remedy(err, ""))
	}
	if err := setUp(fd, name, multi); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// setUp makes fd a queue of the device name, with a virtio header.
func setUp(fd int, name string, multi bool) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tun: interface name %q: %w", name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("tun: open %s: %w%s", name, err, remedy(err, name))
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader); err != nil {
		return fmt.Errorf("tun: open %s: set the virtio header's size: %w", name, err)
	}
	return nil
}

// probe asks for one offload after the other and remembers what the kernel said. Offloads are the
// device's, so one queue speaks for all.
func (p *offload) probe() error {
	have, sendable := 0, uint32(0)
	for _, o := range offloads {
		if err := unix.IoctlSetInt(p.fds[0], unix.TUNSETOFFLOAD, have|o.flag); err != nil {
			p.features[o.name] = "the kernel refuses it: " + err.Error()
			continue
		}
		have |= o.flag
		p.features[o.name] = "on"
		sendable |= 1 << o.gso
	}
	p.sendable.Store(sendable)
	// The kernel may have taken part of what it refused: end with what it took whole.
	if err := unix.IoctlSetInt(p.fds[0], unix.TUNSETOFFLOAD, have); err != nil {
		return fmt.Errorf("tun: open %s: set offloads %#x: %w", p.name, have, err)
	}
	return nil
}

// maySend reports whether the device takes packets of a GSO type.
func (p *offload) maySend(gso uint8) bool { return p.sendable.Load()&(1<<gso) != 0 }

// refused is called by a queue when the device did not take a packet of a GSO type that the kernel
// had agreed to: from now on such packets go one by one, and Features says so.
func (p *offload) refused(gso uint8) {
	p.sendable.And(^uint32(1 << gso))
	p.featuresMu.Lock()
	defer p.featuresMu.Unlock()
	for _, o := range offloads {
		if o.gso == gso {
			p.features[o.name] = "the device refused a packet (EINVAL): packets are written one by one"
		}
	}
}

// Features says which offloads are on, and why not: csum, tso4, tso6, tso-ecn, uso4, uso6.
func (p *offload) Features() map[string]string {
	p.featuresMu.Lock()
	defer p.featuresMu.Unlock()
	return maps.Clone(p.features)
}
