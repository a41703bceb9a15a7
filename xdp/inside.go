package xdp

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/packet"
)

// Inside is the port on the inside: IP packets to and from a veth of its own, e.g. weft0.
type Inside struct {
	port
	veth   *veth
	host   *netlink.Handle // of the network namespace the port was opened in
	netns  netns           // where the port's end of the veth is
	queues []packet.Queue
}

func openInside(c Config, open opener) (in *Inside, err error) {
	in = &Inside{netns: netns{fd: -1}}
	if err = in.start(c.Inside); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close())
			in = nil
		}
	}()
	if in.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return in, fmt.Errorf("open netlink: %w", err)
	}
	if in.netns, err = newNetns(); err != nil {
		return in, err
	}
	et, err := openEthtool()
	if err != nil {
		return in, err
	}
	defer et.close()
	if in.veth, err = makeVeth(in.host, et, c.Inside, c.InnerMTU, c.queues(), in.netns); err != nil {
		return in, err
	}
	if in.program, err = insideProgram(c.queues()); err != nil {
		return in, err
	}
	err = in.netns.do(func() error {
		if err := in.program.attach(in.veth.peerIndex, in.veth.peer, c.Attach); err != nil {
			return err
		}
		return in.open(c.queues(), in.veth.peerIndex, packet.EthernetHeader+c.InnerMTU, c, open)
	})
	if err != nil {
		return in, err
	}
	for i := range in.rings {
		q := &insideQueue{queue: in.queue(i), port: &in.port, mtu: c.InnerMTU, piece: packet.NewBatch(1, c.InnerMTU)}
		packet.PutEthernet(q.header4[:], in.veth.mac, in.veth.peerMAC, packet.EtherTypeIPv4)
		packet.PutEthernet(q.header6[:], in.veth.mac, in.veth.peerMAC, packet.EtherTypeIPv6)
		in.queues = append(in.queues, q)
	}
	return in, nil
}

// Name is that of the inside interface.
func (in *Inside) Name() string { return in.device }

// Layer is IP: the link's headers are the port's affair.
func (in *Inside) Layer() packet.Layer { return packet.IP }

// Queues returns one queue per queue of the device.
func (in *Inside) Queues() []packet.Queue { return in.queues }

// KernelDrops says what died at the rings. The device counts it too, out of sight.
func (in *Inside) KernelDrops() map[string]uint64 { return in.drops("xdp-inside-") }

// Features says how the port is attached.
func (in *Inside) Features() map[string]string { return in.features() }

// Close frees the queues and removes the interface.
func (in *Inside) Close() error {
	first, err := in.shut()
	if !first {
		return nil
	}
	if in.veth != nil {
		err = errors.Join(err, in.veth.remove(in.host))
	}
	if in.host != nil {
		in.host.Close()
	}
	return errors.Join(err, in.netns.close())
}

type insideQueue struct {
	queue
	port             *port
	mtu              int
	header4, header6 [packet.EthernetHeader]byte

	cutter packet.Cutter
	piece  *packet.Batch // of one packet: what is cut off
}

// Recv strips the Ethernet header. Frames that are neither IPv4 nor IPv6 (ARP, a VLAN tag) are dropped as not-ip.
func (q *insideQueue) Recv(b *packet.Batch) error {
	b.SetLen(0)
	if err := q.wait.Enter(); err != nil {
		return err
	}
	defer q.wait.Leave()
	for b.Len() == 0 {
		if err := q.receive(q.port, b); err != nil {
			return err
		}
	}
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		eth, drop := packet.ParseEthernet(p.Bytes())
		if drop != packet.Alive {
			p.Drop = drop
			continue
		}
		if t := eth.Type(); t != packet.EtherTypeIPv4 && t != packet.EtherTypeIPv6 {
			p.Drop = packet.NotIP
			continue
		}
		p.Strip(packet.EthernetHeader)
	}
	return nil
}

// Send prepends the Ethernet header of the interface and finishes partial checksums, which a frame cannot say of
// itself. A TCP packet above the MTU is one that a far kernel left to its hardware to cut: it is cut here.
func (q *insideQueue) Send(b *packet.Batch) error {
	if err := q.send.Enter(); err != nil {
		return err
	}
	defer q.send.Leave()
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		if p.Drop != packet.Alive {
			continue
		}
		if p.Len() == 0 {
			p.Drop = packet.TooShort
			continue
		}
		if p.Len() > q.mtu {
			q.cut(p)
			continue
		}
		if packet.FinishPartial(p, 0); p.Drop == packet.Alive {
			q.put(p)
		}
	}
	return q.Flush(b)
}

// put stages a packet behind its Ethernet header.
func (q *insideQueue) put(p *packet.Packet) {
	header := &q.header4
	if p.Bytes()[0]>>4 == 6 {
		header = &q.header6
	}
	if frame := q.Stage(p, packet.EthernetHeader); frame != nil {
		copy(frame, header[:])
	}
}

// cut stages the pieces of a super-packet.
func (q *insideQueue) cut(p *packet.Packet) {
	if !q.cutter.Start(p.Bytes(), q.mtu, p.Checksum() == packet.ChecksumPartial) {
		if p.Drop = packet.CheckPartial(p, 0); p.Drop == packet.Alive {
			p.Drop = packet.TooBig
		}
		return
	}
	piece := &q.piece.Slots()[0]
	for more := true; more && p.Drop == packet.Alive; p.Drop = piece.Drop {
		var n int
		n, more = q.cutter.Next(piece.Reset()[:q.mtu])
		piece.Resize(n)
		q.put(piece)
	}
}
