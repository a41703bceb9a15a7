package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"

	"weft/internal/sock"
	"weft/internal/steer"
	"weft/packet"
)

// kernelTurns is how many batches may come from the ring before the kernel's path is looked at in between.
const kernelTurns = 64

// Outside is the port on the underlay: whole UDP datagrams of the tunnel, in and out past the kernel's stack. All
// other traffic of the device, and what the ring cannot carry, stays the kernel's.
type Outside struct {
	port
	kernel     *kernelPath
	plain      *kernelPath  // of Config.PlainPort; nil = there is none
	handshakes []*sock.Conn // one per address, with Config.Steer
	sources    *sources
	resolver   *resolver
	queues     []packet.Queue
	extra      map[string]string // features of its own
}

// device is what a port needs to know of a device.
type device struct {
	name          string
	index, mtu    int
	mac           [6]byte
	driver        string
	receiveQueues int
}

// inspect looks the underlay device up.
func inspect(name string) (d device, err error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return d, fmt.Errorf("find the underlay interface %q: %w: set node.interface", name, err)
	}
	d = device{name: name, index: l.Attrs().Index, mtu: l.Attrs().MTU}
	if copy(d.mac[:], l.Attrs().HardwareAddr) != len(d.mac) || l.Attrs().EncapType != "ether" {
		return d, fmt.Errorf("%s is not an Ethernet device (%s): use a mode without AF_XDP", name, l.Attrs().EncapType)
	}
	et, err := openEthtool()
	if err != nil {
		return d, err
	}
	defer et.close()
	if d.driver, err = et.driver(name); err != nil {
		return d, err
	}
	d.receiveQueues, err = et.receiveQueues(name)
	return d, err
}

func openOutside(c Config, dev device, open opener) (out *Outside, err error) {
	queues := min(c.queues(), dev.receiveQueues)
	out = &Outside{extra: map[string]string{}}
	if err = out.start(dev.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close())
			out = nil
		}
	}()
	if out.program, err = underlayProgram(queues, c); err != nil {
		return out, err
	}
	if out.kernel, err = openKernelPath(c.Local, c.Port); err != nil {
		return out, err
	}
	wake := out.kernel.fds[:]
	if c.PlainPort != 0 && c.PlainPort != c.Port {
		if out.plain, err = openKernelPath(c.Local, c.PlainPort); err != nil {
			return out, err
		}
		wake = append(wake[:len(wake):len(wake)], out.plain.fds[:]...)
	}
	if c.Steer != nil {
		if out.handshakes, err = out.kernel.steer(*c.Steer); err != nil {
			return out, err
		}
	}
	if err = out.program.attach(dev.index, dev.name, c.Attach); err != nil {
		return out, err
	}
	if err = out.open(queues, dev.index, packet.EthernetHeader+dev.mtu, c, open, wake...); err != nil {
		return out, err
	}
	if out.sources, err = openSources(c.Local); err != nil {
		return out, err
	}
	if out.resolver, err = newResolver(dev, c.Local, out.sources); err != nil {
		return out, err
	}
	// A veth hands frames over as the sender's stack left them: with sums that no hardware will finish. The kernel
	// knows that of each frame and does not look at the sum; XDP is not told.
	verify := c.VerifyUDP || dev.driver != "veth"
	out.extra["udp-checksum-verified"] = "on"
	if !verify {
		out.extra["udp-checksum-verified"] = "a veth hands over sums that the sender's kernel left unfinished"
	}
	out.extra["xdp-all-queues"] = "on"
	if dev.receiveQueues < c.queues() {
		out.extra["xdp-all-queues"] = fmt.Sprintf("%s has %d receive queues, so there are no more lanes than that", dev.name, dev.receiveQueues)
	}
	if dev.receiveQueues > queues {
		out.extra["xdp-all-queues"] = fmt.Sprintf("%s has %d receive queues, %d lanes serve them: the rest goes through the kernel; "+
			"set `queues: %d` or run `ethtool -L %s combined %d`", dev.name, dev.receiveQueues, queues, dev.receiveQueues, dev.name, queues)
	}
	for i := range out.rings {
		out.queues = append(out.queues, &outsideQueue{queue: out.queue(i), port: &out.port, resolver: out.resolver, kernel: out.kernel, plain: out.plain, verify: verify, listen: i == 0})
	}
	return out, nil
}

// Name is that of the device.
func (o *Outside) Name() string { return o.device }

// Layer is Tunnel: the outer headers are the port's affair.
func (o *Outside) Layer() packet.Layer { return packet.Tunnel }

// Queues returns one queue per lane.
func (o *Outside) Queues() []packet.Queue { return o.queues }

// Features says how the port is attached and what it does not do.
func (o *Outside) Features() map[string]string {
	f := o.features()
	maps.Copy(f, o.extra)
	return f
}

// KernelDrops says what died around the port: in the rings, and held by the kernel for neighbours that never answered.
// The device counts what died at its rings too.
func (o *Outside) KernelDrops() map[string]uint64 {
	drops := o.drops("xdp-")
	if n := o.resolver.lost.Load(); n > 0 {
		drops["neighbour-unresolved"] = n
	}
	steer.AddOverflow(drops, o.handshakes)
	return drops
}

// Handshakes returns the sockets for what is not for lanes: one per address with Config.Steer.
func (o *Outside) Handshakes() []packet.Conn { return steer.Conns(o.handshakes) }

// Close gives the device's traffic back to the kernel and frees the queues.
func (o *Outside) Close() error {
	first, err := o.shut()
	if !first {
		return nil
	}
	if o.resolver != nil {
		o.resolver.close()
	}
	if o.sources != nil {
		err = errors.Join(err, o.sources.close())
	}
	for _, k := range []*kernelPath{o.kernel, o.plain} {
		if k != nil {
			err = errors.Join(err, k.close())
		}
	}
	for _, c := range o.handshakes {
		err = errors.Join(err, c.Close())
	}
	return err
}

type outsideQueue struct {
	queue
	port     *port
	resolver *resolver
	kernel   *kernelPath
	plain    *kernelPath // nil = there is none
	verify   bool
	listen   bool // this queue's Recv also receives from the kernel's path

	turns uint32         // of Recv
	peers []*destination // by Hop.Peer.ID, of Send
}

// Recv strips the outer Ethernet, IP and UDP headers and says who sent the packet.
func (q *outsideQueue) Recv(b *packet.Batch) error {
	b.SetLen(0)
	if err := q.wait.Enter(); err != nil {
		return err
	}
	defer q.wait.Leave()
	for {
		if q.turns++; q.listen && q.turns%kernelTurns == 0 {
			if n := q.fromKernel(b.Slots()); n > 0 {
				b.SetLen(n)
				return nil
			}
		}
		if err := q.receive(q.port, b); err != nil {
			return err
		}
		if b.Len() > 0 {
			break
		}
		if n := q.fromKernel(b.Slots()); n > 0 {
			b.SetLen(n)
			return nil
		}
	}
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		switch {
		case p.Drop != packet.Alive:
		case q.resolver != nil && q.resolver.foreign(p.Bytes()):
			p.Drop = packet.WrongMAC
		default:
			p.Drop = unwrap(p, q.verify)
		}
	}
	return nil
}

// fromKernel fills slots with what came by the kernel's path.
func (q *outsideQueue) fromKernel(slots []packet.Packet) int {
	n := q.kernel.recv(slots)
	if q.plain != nil {
		n += q.plain.recv(slots[n:])
	}
	return n
}

// unwrap checks and strips Ethernet, IP and UDP. The program has let through nothing but UDP without IPv4 options,
// IPv6 extension headers or fragmentation; lengths and sums are checked here.
func unwrap(p *packet.Packet, verify bool) packet.Drop {
	eth, drop := packet.ParseEthernet(p.Bytes())
	if drop != packet.Alive {
		return drop
	}
	ip, drop := packet.ParseIP(eth.Payload())
	if drop != packet.Alive {
		return drop
	}
	start, ok := ip.Transport()
	if !ok || ip.Protocol() != packet.ProtoUDP {
		return packet.BadHeader
	}
	udp := ip.Bytes()[start:]
	if len(udp) < packet.UDPHeader {
		return packet.TooShort
	}
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if length < packet.UDPHeader || length > len(udp) {
		return packet.BadHeader
	}
	if !ip.IPv4ChecksumOK() || verify && !ip.VerifyTransport() {
		return packet.BadChecksum
	}
	p.From = netip.AddrPortFrom(ip.Src(), binary.BigEndian.Uint16(udp))
	outer := packet.EthernetHeader + start + packet.UDPHeader
	p.Strip(outer)
	p.Resize(length - packet.UDPHeader)
	p.SetOuter(outer)
	return packet.Alive
}

// Send puts the outer headers in front of each packet and sends it to its Hop.
func (q *outsideQueue) Send(b *packet.Batch) error {
	if err := q.send.Enter(); err != nil {
		return err
	}
	defer q.send.Leave()
	packets := b.Packets()
	var hop *packet.Hop
	var d *destination
	var c *adjacency
	for i := range packets {
		p := &packets[i]
		if p.Drop != packet.Alive {
			continue
		}
		if !p.Hop.Dst().IsValid() {
			p.Drop = packet.NoEndpoint
			continue
		}
		if p.Hop != hop {
			hop = p.Hop
			d = q.to(hop)
			c = q.adjacency(d)
		}
		switch t := c.template; {
		case t != nil:
			if p.Len()+t.length-packet.EthernetHeader > t.mtu {
				p.Drop = packet.TooBig
				continue
			}
			flow := p.Flow
			if frame := q.Stage(p, t.length); frame != nil {
				t.write(frame, flow)
			}
		case c.kernel && (!c.pending || c.budget.Add(-1) >= 0):
			p.Drop = q.kernel.send(p, &d.raw)
		default:
			p.Drop = packet.Unresolved
		}
	}
	return q.Flush(b)
}

// Outer implements packet.Outward.
func (q *outsideQueue) Outer(p *packet.Packet) packet.OuterHeader {
	if !p.Hop.Dst().IsValid() || q.send.Enter() != nil {
		return packet.OuterHeader{}
	}
	defer q.send.Leave()
	if t := q.adjacency(q.to(p.Hop)).template; t != nil {
		return packet.OuterHeader{Frame: t.header[:t.length], Port: t.from.of(t.v6, p.Flow)}
	}
	return packet.OuterHeader{Port: q.kernel.port}
}

// to finds the destination of a hop: by the peer's number, unless its address has changed.
func (q *outsideQueue) to(hop *packet.Hop) *destination {
	if id := int(hop.Peer.ID); id < len(q.peers) {
		if d := q.peers[id]; d != nil && d.addr == hop.Path.Dst && !d.gone.Load() {
			return d
		}
	}
	d := q.resolver.destination(hop.Path.Dst)
	if id := int(hop.Peer.ID); id < 1<<20 {
		if id >= len(q.peers) {
			q.peers = append(q.peers, make([]*destination, id+64-len(q.peers))...)
		}
		q.peers[id] = d
	}
	return d
}

// adjacency is a destination's adjacency now, and notes that it is used.
func (q *outsideQueue) adjacency(d *destination) *adjacency {
	if !d.used.Load() {
		d.used.Store(true)
	}
	return d.adjacency.Load()
}
