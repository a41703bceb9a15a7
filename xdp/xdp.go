// Package xdp has ports over AF_XDP sockets: the inside one on a veth of its own, the outside one on the underlay's
// device, where it sends and receives whole UDP datagrams past the kernel's stack.
//
// Opened as a pair they share memory: a packet that arrives on one side leaves on the other without being copied in
// user space; only its frame changes hands. Opened alone each works with any other port, at the cost of one copy a
// packet in one direction; so does a pair whose underlay driver does zero-copy, which a veth cannot share.
//
//	pod … kernel ─ weft0 ═veth═ weft0-x ─XDP→ inside port   lanes   outside port ─XDP→ eth0
//
// weft0-x lives in a network namespace of the process's own.
//
// Received frames are at most one chunk of 4096 bytes; multi-buffer frames are not supported.
package xdp

import (
	"errors"
	"fmt"
	"net/netip"

	"weft/internal/steer"
	"weft/packet"
)

// Attach says how the XDP programs are attached.
type Attach uint8

const (
	// Auto attaches in the driver, and in the kernel's generic path where the driver refuses.
	Auto Attach = iota
	// Native attaches in the driver or fails.
	Native
	// Generic attaches in the kernel's generic path.
	Generic
)

// Config says what to open. Inside ports use Inside and InnerMTU, outside ports Device, Local, Port; both the rest.
type Config struct {
	Inside   string // name of the inside interface, e.g. "weft0"; its peer, the port's device, is named "weft0-x"
	InnerMTU int    // largest inner IP packet, bytes

	Device string       // the underlay interface, e.g. "eth0"
	Local  []netip.Addr // our tunnel addresses on the underlay, at most one per address family
	Port   uint16       // UDP port of the tunnel
	// Steer, if set, leaves datagrams to Port that are not for lanes to the kernel, where the sockets of Handshakes get them.
	Steer *steer.Rule
	// PlainPort is a second UDP port, all of whose datagrams are for lanes; 0 = none.
	PlainPort uint16

	// At runs what opens the outside port of a pair, in the network namespace that its device is in; nil = the caller's.
	At func(func() error) error

	Queues int // 0 = 1; an underlay device with fewer receive queues has the last word

	Attach   Attach
	RingSize int // frames per ring, a power of two; 0 = 2048

	// Rings opens the rings of one queue of a device; nil = our own, which share their memory.
	Rings func(Request) (Rings, error)

	// VerifyUDP verifies outer UDP checksums also where the device's driver is one that hands over unfinished sums
	// (veth), which then are dropped as bad-checksum. Elsewhere they are always verified.
	VerifyUDP bool
}

const defaultRing = 2048

func (c Config) ring() int {
	if c.RingSize == 0 {
		return defaultRing
	}
	return c.RingSize
}

func (c Config) queues() int { return max(c.Queues, 1) }

func (c Config) check() error {
	if n := c.ring(); n&(n-1) != 0 || n < packet.BatchSize || n > 1<<15 {
		return fmt.Errorf("ring size %d: want a power of two from %d to %d", c.RingSize, packet.BatchSize, 1<<15)
	}
	return nil
}

// reserved is how many frames a queue pair keeps for batches: four of full size.
const reserved = 4 * packet.BatchSize

// opener opens the rings of one queue.
type opener func(Request) (Rings, error)

// own opens rings of our own. Queue i of every port it is given to has the same memory, made for so many sides and
// Ethernet frames of length bytes; but a driver's zero-copy keeps its memory to itself: then the other side has its own,
// and packets are copied from one to the other.
func (c Config) own(sides, length int) (opener, error) {
	size, err := frameSize(length)
	if err != nil {
		return nil, err
	}
	mem := map[int]*umem{}
	return func(r Request) (Rings, error) {
		if mem[r.Queue] == nil || mem[r.Queue].zeroCopy {
			if mem[r.Queue], err = newUMEM(sides*2*r.Size+reserved, size); err != nil {
				return nil, err
			}
		}
		return openPair(mem[r.Queue], r)
	}, nil
}

// OpenPair opens both ports over one UMEM a queue. Lane i of either direction must join queue i of one to queue i of
// the other, or packets are copied.
func OpenPair(c Config) (inside *Inside, outside *Outside, err error) {
	fail := func(err error) (*Inside, *Outside, error) { return nil, nil, fmt.Errorf("xdp: %w", err) }
	at := c.At
	if at == nil {
		at = func(f func() error) error { return f() }
	}
	// The underlay first: it is the one that may be refused, and then nothing was made.
	var open opener
	err = at(func() (err error) {
		dev, err := inspect(c.Device)
		if err != nil {
			return err
		}
		if open, err = c.opener(2, max(dev.mtu, c.InnerMTU)); err != nil {
			return err
		}
		outside, err = openOutside(c, dev, open)
		return err
	})
	if err != nil {
		return fail(err)
	}
	c.Queues = len(outside.queues)
	if inside, err = openInside(c, open); err != nil {
		return fail(errors.Join(err, outside.Close()))
	}
	return inside, outside, nil
}

// OpenInside opens the inside port alone.
func OpenInside(c Config) (*Inside, error) {
	open, err := c.opener(1, c.InnerMTU)
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	in, err := openInside(c, open)
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	return in, nil
}

// OpenOutside opens the outside port alone.
func OpenOutside(c Config) (*Outside, error) {
	dev, err := inspect(c.Device)
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	open, err := c.opener(1, dev.mtu)
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	out, err := openOutside(c, dev, open)
	if err != nil {
		return nil, fmt.Errorf("xdp: %w", err)
	}
	return out, nil
}

// opener is Config.Rings or, as a rule, our own.
func (c Config) opener(sides, mtu int) (opener, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Rings != nil {
		return c.Rings, nil
	}
	return c.own(sides, packet.EthernetHeader+mtu)
}
