package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

// routeModel is three nodes, each with a lane out and a lane in of a Route and a VXLAN stage, whose tables are swapped all the time:
// prefixes move between nodes, peers come, go and move, MTUs and abilities change. The oracle keeps lists: it looks through all of
// them for each packet, and builds what must be on the wire byte by byte.
type routeModel struct {
	t     *packettest.Tape
	nodes [3]*routeNode
	air   []tunnelled
}

type routeNode struct {
	id      int
	at      netip.AddrPort // where it is now
	rco     bool
	route   *Route
	list    slowTable
	out, in *Lane
	inside  *script // of the lane out
	under   *script // of the lane in

	tooBig []tunnelled               // handed to whoever answers
	drops  [2]map[packet.Drop]uint64 // by the oracle: out, in
	peers  [2]map[uint32]PeerStats
}

// slowTable is what a node believes.
type slowTable struct {
	prefixes map[netip.Prefix]int
	hops     map[int]*packet.Hop // no entry = no such peer
	from     map[netip.Addr]int
}

// tunnelled is a datagram on its way.
type tunnelled struct {
	from netip.AddrPort
	to   netip.AddrPort
	data []byte
}

// script is a queue that presents what it is told and keeps what it is given.
type script struct {
	whole bool // what it is given is kept with its checksum finished
	given []given
	sent  []tunnelled
}

type given struct {
	data  []byte
	state packet.ChecksumState
	from  netip.AddrPort
	drop  packet.Drop
}

func (q *script) Recv(b *packet.Batch) error {
	for i, g := range q.given {
		p := &b.Slots()[i]
		packettest.Load(p, g.data, g.state)
		p.From, p.Drop = g.from, g.drop
	}
	b.SetLen(len(q.given))
	q.given, q.sent = nil, nil
	return nil
}

func (q *script) Send(b *packet.Batch) error {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		s := tunnelled{data: bytes.Clone(p.Bytes())}
		if q.whole {
			s.data = packettest.Whole(p)
		}
		if p.Hop != nil {
			s.to = p.Hop.Path.Dst
		}
		q.sent = append(q.sent, s)
		copy(p.Tail()[:cap(p.Tail())], "the port is done with it")
	}
	return nil
}

const modelVNI = 0x123456

func vtep(id int) [6]byte { return [6]byte{2, 0, 0, 0, 0, byte(id)} }

// The prefixes that nodes may own, some inside others, and the addresses that packets have.
var (
	modelPrefixes = prefixesOf("10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24", "10.244.0.0/16", "10.244.2.128/25", "10.244.2.3/32", "0.0.0.0/0",
		"fd00:1::/32", "fd00:2::/32", "fd00:3::/32", "fd00::/16", "fd00:2::3/128", "::/0")
	modelAddrs = []netip.Addr{}
)

func prefixesOf(all ...string) (p []netip.Prefix) {
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func init() {
	for _, s := range []string{"10.244.1.2", "10.244.2.3", "10.244.2.130", "10.244.3.4", "10.244.9.9", "203.0.113.1",
		"fd00:1::2", "fd00:2::3", "fd00:2::4", "fd00:3::4", "fd00:9::9", "2001:db8::1"} {
		modelAddrs = append(modelAddrs, netip.MustParseAddr(s))
	}
}

func playRoutes(t *packettest.Tape) error {
	m := &routeModel{t: t}
	for id := range m.nodes {
		n := &routeNode{id: id, at: outerAddr(id, 0), rco: t.N(2) == 0, route: NewRoute(), inside: &script{}, under: &script{whole: true}}
		n.list = slowTable{map[netip.Prefix]int{}, map[int]*packet.Hop{}, map[netip.Addr]int{}}
		stage := vxlan.New(vxlan.Config{VNI: modelVNI, MAC: vtep(id), RCO: n.rco})
		n.out = NewLane(LaneConfig{Direction: Out, Inside: End{Queue: n.inside}, Forward: n.route,
			Ways: []Way{{Wrap: []packet.Stage{stage}, Outside: End{Queue: n.inside}}}, Room: 2000, TooBig: func(ip []byte, path *packet.Path) {
				n.tooBig = append(n.tooBig, tunnelled{data: bytes.Clone(ip), to: netip.AddrPortFrom(netip.Addr{}, uint16(path.MTU()))})
			}})
		n.in = NewLane(LaneConfig{Direction: In, Inside: End{Queue: n.under}, Forward: n.route,
			Ways: []Way{{Wrap: []packet.Stage{stage}, Outside: End{Queue: n.under}}}, Room: 2100})
		for dir := range 2 {
			n.drops[dir], n.peers[dir] = map[packet.Drop]uint64{}, map[uint32]PeerStats{}
		}
		m.nodes[id] = n
	}
	for _, n := range m.nodes {
		m.change(n, true)
		m.change(n, false)
	}
	for more := true; more; more = t.More() {
		n := packettest.Pick(t, m.nodes[:]...)
		var err error
		switch t.N(16) {
		default:
			err = m.send(n)
		case 8, 9, 10, 11, 12:
			err = m.deliver(n)
		case 13, 14:
			m.change(n, t.Chance(8))
		case 15:
			n.at = outerAddr(n.id, t.N(3)) // it moves; others learn of that when their tables change
		}
		if err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
		if err := n.adds(); err != nil {
			return fmt.Errorf("node %d: %w", n.id, err)
		}
	}
	return nil
}

func outerAddr(id, place int) netip.AddrPort {
	if place == 2 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 15: byte(10*id + place)}), 4789)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(10*id + place)}), 4789)
}

// change gives a node another table: edited, or built anew.
func (m *routeModel) change(n *routeNode, anew bool) {
	t := m.t
	old, list := n.list, slowTable{map[netip.Prefix]int{}, map[int]*packet.Hop{}, map[netip.Addr]int{}}
	for id, o := range m.nodes {
		if id == n.id || o == nil || t.Chance(12) { // a peer is gone
			continue
		}
		if h := old.hops[id]; h != nil && h.Path.Dst == o.at && h.Peer.RCO == o.rco && !t.Chance(4) {
			if list.hops[id] = h; t.Chance(4) { // what is published learns it as well
				h.Path.SetMTU(packettest.Pick(t, 1400, 1450, 600))
			}
		} else {
			list.hops[id] = &packet.Hop{Peer: packet.Peer{ID: uint32(id), VNI: modelVNI, MAC: vtep(id), RCO: o.rco}, Path: packet.NewPath(netip.Addr{}, o.at, packettest.Pick(t, 1400, 1450, 600))}
		}
		list.from[list.hops[id].Path.Dst.Addr()] = id
		if a := outerAddr(id, t.N(3)).Addr(); t.Chance(3) { // a second address
			list.from[a] = id
		}
	}
	for i, p := range modelPrefixes {
		owner := i % 3
		switch t.N(12) {
		case 0:
			owner = t.N(3)
		case 1:
			continue
		}
		if owner == n.id || list.hops[owner] != nil {
			list.prefixes[p] = owner
		}
	}
	table := NewTable()
	if !anew {
		table = n.route.Table().Clone()
		for p, owner := range old.prefixes {
			if now, still := list.prefixes[p]; !still || now != owner || list.hops[owner] != old.hops[owner] {
				table.Remove(p)
			}
		}
		for a, id := range old.from {
			if now, still := list.from[a]; !still || now != id {
				table.RemovePeer(a)
			}
		}
	}
	for p, owner := range list.prefixes {
		was, had := old.prefixes[p]
		switch {
		case !anew && had && was == owner && list.hops[owner] == old.hops[owner]:
		case owner == n.id:
			table.InsertSelf(p)
		default:
			table.Insert(p, list.hops[owner])
		}
	}
	for a, id := range list.from {
		table.InsertPeer(a, list.hops[id])
	}
	if t.Chance(8) { // somebody thinks better of it: what is published was not touched
		return
	}
	n.list = list
	n.route.Publish(table)
}

// owner is who has an address: its longest prefix, by looking at all.
func (s *slowTable) owner(a netip.Addr) (owner int, ok bool) {
	longest := -1
	for p, id := range s.prefixes {
		if p.Contains(a) && p.Bits() > longest {
			owner, longest = id, p.Bits()
		}
	}
	return owner, longest >= 0
}

// send lets pods of a node send a batch, and holds what is on the wire to what must be there.
func (m *routeModel) send(n *routeNode) error {
	t := m.t
	var want, tooBig []tunnelled
	var flows []*packettest.Flow
	for range 1 + t.N(3) {
		f := t.Flow()
		src, dst := packettest.Pick(t, modelAddrs...), packettest.Pick(t, modelAddrs...)
		for dst.Is4() != src.Is4() {
			dst = modelAddrs[(len(modelAddrs)/2+t.N(6))*b2i(src.Is6())+t.N(6)*b2i(src.Is4())]
		}
		f.Src, f.Dst = netip.AddrPortFrom(src, f.Src.Port()), netip.AddrPortFrom(dst, f.Dst.Port())
		flows = append(flows, f)
	}
	count := packettest.Pick(t, 1, 1+t.N(packet.BatchSize), packet.BatchSize)
	for len(n.inside.given) < count {
		f, size := packettest.Pick(t, flows...), packettest.Pick(t, 10, 500, 1300, t.N(1500))
		for range min(t.Run(), count-len(n.inside.given)) {
			g := given{data: f.Packet(size)}
			sound := true
			if t.Chance(8) {
				g.data, sound = f.Odd(size)
			}
			if sound && t.N(2) == 0 {
				g.state = packet.ChecksumPartial
			}
			if t.Chance(40) {
				g.drop = packet.Truncated
			}
			n.inside.given = append(n.inside.given, g)
			if w, drop := m.out(n, g); drop == packet.Alive {
				want = append(want, w)
			} else if n.drops[Out][drop]++; drop == packet.TooBig {
				tooBig = append(tooBig, w)
			}
		}
	}
	t.Step(count)
	n.tooBig = nil
	if err := n.out.Turn(); err != nil {
		return err
	}
	if len(n.tooBig) != len(tooBig) {
		return fmt.Errorf("%d packets are answered, want %d", len(n.tooBig), len(tooBig))
	}
	for i, b := range n.tooBig { // in any order: the dead do not keep theirs
		found := false
		for k, w := range tooBig {
			if found = bytes.Equal(w.data, b.data) && w.to == b.to; found {
				tooBig = append(tooBig[:k:k], tooBig[k+1:]...)
				break
			}
		}
		if !found {
			return fmt.Errorf("answered packet %d: %d bytes, MTU %d: not one that was sent", i, len(b.data), b.to.Port())
		}
	}
	if len(n.inside.sent) != len(want) {
		return fmt.Errorf("%d of %d packets left, want %d", len(n.inside.sent), count, len(want))
	}
	for i, s := range n.inside.sent {
		if err := packettest.Same(s.data, want[i].data); err != nil {
			return fmt.Errorf("sent packet %d: %w", i, err)
		}
		if s.to != want[i].to {
			return fmt.Errorf("sent packet %d: to %v, want %v", i, s.to, want[i].to)
		}
	}
	if m.air = append(m.air, want...); len(m.air) > 2000 {
		m.air = m.air[len(m.air)-1000:]
	}
	return nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// out says slowly what must become of a packet that a pod sends.
func (m *routeModel) out(n *routeNode, g given) (w tunnelled, drop packet.Drop) {
	ip := bytes.Clone(g.data)
	switch {
	case g.drop != packet.Alive:
		return w, g.drop
	case len(ip) < packet.IPv4Header || ip[0]>>4 == 6 && len(ip) < packet.IPv6Header:
		return w, packet.TooShort
	case ip[0]>>4 != 4 && ip[0]>>4 != 6:
		return w, packet.BadHeader
	}
	_, dst := ends(ip)
	owner, ok := n.list.owner(dst)
	if !ok || owner == n.id {
		return w, packet.NoRoute
	}
	hop := n.list.hops[owner]
	if len(ip) > hop.Path.MTU() {
		if w.data, w.to = ip, netip.AddrPortFrom(netip.Addr{}, uint16(hop.Path.MTU())); g.state == packet.ChecksumPartial {
			packettest.Unfinish(ip)
		}
		return w, packet.TooBig
	}
	header := uint64(0x08)<<56 | modelVNI<<8
	if g.state == packet.ChecksumPartial {
		start, offset := packettest.Unfinish(ip)
		if n.rco && hop.Peer.RCO { // the peer finishes it
			header |= 0x00200000<<32 | uint64(packet.EthernetHeader+start)/2
			if offset == 6 {
				header |= 0x80
			}
		} else {
			packet.FinishChecksum(ip, start, offset)
		}
	}
	w.from, w.to = n.at, hop.Path.Dst
	w.data = binary.BigEndian.AppendUint64(nil, header)
	w.data = append(w.data, packettest.Ethernet(vtep(owner), vtep(n.id), ip)...)
	n.peers[Out][hop.Peer.ID] = n.peers[Out][hop.Peer.ID].plus(len(ip))
	return w, packet.Alive
}

func (p PeerStats) plus(n int) PeerStats { return PeerStats{p.Packets + 1, p.Bytes + uint64(n)} }

func ends(ip []byte) (src, dst netip.Addr) {
	if ip[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
	}
	return netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
}

// deliver gives a node a batch of what is on its way to it, in any order, some of it damaged, again or from elsewhere.
func (m *routeModel) deliver(n *routeNode) error {
	t := m.t
	var came []tunnelled
	for i := 0; i < len(m.air) && len(came) < packet.BatchSize; {
		d := m.air[i]
		if d.to.Addr() != n.at.Addr() {
			i++
			continue
		}
		mood := t.N(24)
		switch mood {
		case 0:
			i++
			continue // it comes later
		case 1:
			i++ // and comes again
		case 2:
			d.data = d.data[:t.N(len(d.data))]
		case 3:
			d.data = bytes.Clone(d.data)
			d.data[t.N(len(d.data))] ^= 1 << t.N(8)
		case 4:
			d.from = outerAddr(t.N(3), t.N(3))
		case 5: // Ethernet pads
			d.data = append(bytes.Clone(d.data), make([]byte, 1+t.N(40))...)
		}
		if mood > 1 {
			m.air = append(m.air[:i:i], m.air[i+1:]...)
		}
		came = append(came, d)
	}
	if len(came) == 0 {
		return nil
	}
	for i := 1; i < len(came); i++ {
		if t.Chance(8) {
			came[i], came[i-1] = came[i-1], came[i]
		}
	}
	var want [][]byte
	for i := range came {
		d := &came[i]
		n.under.given = append(n.under.given, given{data: d.data, from: d.from})
		if ip, drop := m.judge(n, d); drop == packet.Alive {
			want = append(want, ip)
		} else {
			n.drops[In][drop]++
		}
	}
	t.Step(len(came))
	if err := n.in.Turn(); err != nil {
		return err
	}
	if len(n.under.sent) != len(want) {
		return fmt.Errorf("%d of %d packets reach the pods, want %d", len(n.under.sent), len(came), len(want))
	}
	for i, s := range n.under.sent {
		if err := packettest.Same(s.data, want[i]); err != nil {
			return fmt.Errorf("delivered packet %d: %w", i, err)
		}
	}
	return nil
}

// judge says slowly what must become of a datagram, and what pods get.
func (m *routeModel) judge(n *routeNode, d *tunnelled) (ip []byte, drop packet.Drop) {
	b := d.data
	switch {
	case len(b) < 8:
		return nil, packet.TooShort
	case b[0]&0x08 == 0:
		return nil, packet.BadHeader
	case b[4] != modelVNI>>16 || b[5] != modelVNI>>8&0xff || b[6] != modelVNI&0xff:
		return nil, packet.WrongVNI
	case len(b) < 8+packet.EthernetHeader:
		return nil, packet.TooShort
	}
	etherType, inner := binary.BigEndian.Uint16(b[20:]), b[8+packet.EthernetHeader:]
	switch {
	case etherType != packet.EtherTypeIPv4 && etherType != packet.EtherTypeIPv6:
		return nil, packet.NotIP
	case [6]byte(b[8:]) != vtep(n.id):
		return nil, packet.WrongMAC
	case len(inner) == 0:
		return nil, packet.TooShort
	case (etherType == packet.EtherTypeIPv4) != (inner[0]>>4 == 4) || (etherType == packet.EtherTypeIPv6) != (inner[0]>>4 == 6):
		return nil, packet.BadHeader
	}
	v, drop := packet.ParseIP(inner)
	if drop != packet.Alive {
		return nil, drop
	}
	ip = bytes.Clone(v.Bytes())
	start, offset, unfinished := v.UnfinishedChecksum()
	if unfinished { // by the peer's kernel, or because we finish it
		packet.FinishChecksum(ip, start, offset)
	}
	rco := n.rco && b[1]&0x20 != 0
	if mark := byte(start+packet.EthernetHeader)/2 | byte(b2i(offset == 6))<<7; rco && (!unfinished || b[7] != mark) {
		return nil, packet.BadHeader
	}
	peer, ok := n.list.from[d.from.Addr()]
	if !ok {
		return nil, packet.UnknownPeer
	}
	if rco && !n.list.hops[peer].Peer.RCO {
		return nil, packet.BadHeader
	}
	src, dst := ends(ip)
	if owner, ok := n.list.owner(src); !ok || owner != peer {
		return nil, packet.WrongSource
	}
	if owner, ok := n.list.owner(dst); !ok || owner != n.id {
		return nil, packet.NotOurs
	}
	n.peers[In][uint32(peer)] = n.peers[In][uint32(peer)].plus(len(ip))
	return ip, packet.Alive
}

// adds holds the lanes' own accounts to the oracle's.
func (n *routeNode) adds() error {
	for dir, l := range []*Lane{n.out, n.in} {
		s := l.Stats()
		drops := s.Drops()
		if s.Received != s.Sent+drops.Total() {
			return fmt.Errorf("lane %v: received %d, sent %d, dropped %v", Direction(dir), s.Received, s.Sent, drops.Map())
		}
		for d := packet.Alive + 1; d < packet.NumDrops; d++ {
			if drops[d] != n.drops[dir][d] {
				return fmt.Errorf("lane %v: %d packets died as %v, want %d", Direction(dir), drops[d], d, n.drops[dir][d])
			}
		}
		for id, p := range l.Peers() {
			if want := n.peers[dir][uint32(id)]; p != want {
				return fmt.Errorf("lane %v: peer %d: %+v, want %+v", Direction(dir), id, p, want)
			}
		}
	}
	return nil
}

func TestRouteModel(t *testing.T) { packettest.Sequences(t, 200_000, playRoutes) }
func FuzzRouteModel(f *testing.F) { packettest.FuzzSequences(f, playRoutes) }
