// Package tun holds the inside ports over /dev/net/tun: packets that the kernel routes into a TUN
// device come out of Recv, packets given to Send enter the kernel as if received from a network.
//
// Open makes the plain port, on github.com/songgao/water: whole IP packets, one system call each,
// checksums finished and super-packets cut by the kernel. OpenOffload makes the port that moves
// super-packets, OpenTAP one for whole Ethernet frames.
//
// A device lives as long as its port: it is not persistent. Its addresses, its MTU and its state are
// the business of whoever opens it.
package tun

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"weft/internal/holder"
	"weft/internal/wait"
	"weft/packet"
)

// Config is what a TUN port is made from.
type Config struct {
	Name string // of the interface, 1–15 bytes: "weft0"
	MTU  int    // the largest IP packet the device is given, bytes
}

// check refuses what the kernel would cut short or take for something else.
func (c Config) check(queues int) error {
	switch {
	case len(c.Name) == 0 || len(c.Name) >= unix.IFNAMSIZ:
		return fmt.Errorf("tun: interface name %q: use 1 to %d bytes", c.Name, unix.IFNAMSIZ-1)
	case c.MTU < packet.MinIPv4MTU:
		return fmt.Errorf("tun: open %s: MTU %d: at least %d is needed", c.Name, c.MTU, packet.MinIPv4MTU)
	case queues < 1:
		return fmt.Errorf("tun: open %s: %d queues: at least 1 is needed", c.Name, queues)
	}
	return nil
}

// Open makes the TUN device cfg.Name in the calling thread's network namespace, a multi-queue one
// if queues > 1.
func Open(cfg Config, queues int) (packet.Port, error) { return openPlain(cfg, queues, packet.IP) }

func openPlain(cfg Config, queues int, layer packet.Layer) (packet.Port, error) {
	if err := cfg.check(queues); err != nil {
		return nil, err
	}
	stop, err := wait.NewStop()
	if err != nil {
		return nil, fmt.Errorf("tun: open %s: %w", cfg.Name, err)
	}
	p := &plain{name: cfg.Name, layer: layer, stop: stop}
	if err := p.open(cfg, queues); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// plain implements packet.Port and packet.KernelDrops.
type plain struct {
	name   string
	layer  packet.Layer
	stop   *wait.Stop
	fds    []int
	queues []packet.Queue

	mu      sync.Mutex // what follows
	closed  bool
	link    *link
	dropped uint64 // by the kernel, when last asked
}

func (p *plain) open(cfg Config, queues int) error {
	var kind water.DeviceType = water.TUN
	link := 0
	if p.layer == packet.Ethernet {
		kind, link = water.TAP, packet.EthernetHeader
	}
	for range queues {
		fd, err := openWater(kind, cfg.Name, queues > 1)
		if err != nil {
			return err
		}
		p.fds = append(p.fds, fd)
		p.queues = append(p.queues, &plainQueue{
			name: cfg.Name, fd: fd, mtu: cfg.MTU, link: link,
			in: p.stop.Waiter(wait.Readable, fd), out: p.stop.Gate(),
			segment: make([]byte, link+cfg.MTU),
		})
	}
	var err error
	p.link, err = openLink(cfg.Name)
	return err
}

// openWater opens one queue of a device by way of water and returns a descriptor of our own.
//
// water leaves its descriptor to Go's netpoller, which would wake a thread for every packet that
// finds the queue empty, and without close-on-exec. So it is duplicated and water's is closed:
// both are one open file, and the device stays.
func openWater(kind water.DeviceType, name string, multi bool) (int, error) {
	dev, err := water.New(water.Config{
		DeviceType:             kind,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: multi},
	})
	if err != nil {
		return 0, fmt.Errorf("tun: open %s: %w%s", name, err, remedy(err, name))
	}
	defer dev.Close()
	file, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return 0, fmt.Errorf("tun: open %s: water gave a %T instead of a file", name, dev.ReadWriteCloser)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("tun: open %s: %w", name, err)
	}
	fd := 0
	var dupErr error
	if err := conn.Control(func(theirs uintptr) {
		fd, dupErr = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return 0, fmt.Errorf("tun: open %s: %w", name, err)
	}
	if dupErr != nil {
		return 0, fmt.Errorf("tun: open %s: duplicate descriptor: %w", name, dupErr)
	}
	return fd, nil
}

// remedy says what to do about an error of opening, as the end of a sentence.
func remedy(err error, device string) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ": /dev/net/tun is missing: load the module tun"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return ": run as root or grant CAP_NET_ADMIN"
	case errors.Is(err, unix.EBUSY):
		by := "another process"
		if list := holder.Tun(device); len(list) > 0 {
			by = strings.Join(list, " and ")
		}
		return fmt.Sprintf(": %s has the device: stop that", by)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		is := holder.Device(device)
		if is == "" {
			is = "of another kind"
		}
		return fmt.Sprintf(": %[1]s exists already and is %[2]s: rename it, or remove it with `ip link del %[1]s`", device, is)
	}
	return ""
}

// Name returns the interface's name.
func (p *plain) Name() string { return p.name }

// Layer returns packet.IP, a TAP's packet.Ethernet.
func (p *plain) Layer() packet.Layer { return p.layer }

// Queues returns the device's queues.
func (p *plain) Queues() []packet.Queue { return p.queues }

// KernelDrops returns the packets that found the device's queue full, as "tun-queue".
func (p *plain) KernelDrops() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.look()
	return map[string]uint64{"tun-queue": p.dropped}
}

// look reads the device's counter. Where it cannot, because somebody has removed the device, the
// last figure stays.
func (p *plain) look() {
	if p.link == nil {
		return
	}
	if n, err := p.link.txDropped(); err == nil {
		p.dropped = n
	}
}

// Close wakes the receivers, waits until no lane is inside a system call and closes the descriptors;
// with the last one the device goes.
func (p *plain) Close() error {
	err := p.stop.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if err != nil {
		err = fmt.Errorf("tun: close %s: %w", p.name, err)
	}
	p.look()
	for _, fd := range p.fds {
		if e := unix.Close(fd); e != nil {
			err = errors.Join(err, fmt.Errorf("tun: close %s: %w", p.name, e))
		}
	}
	if p.link != nil {
		p.link.close()
		p.link = nil
	}
	return err
}
