package dataplane

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

// bridgeModel is a node with frames: a lane out of a Bridge, its floods and a VXLAN stage, and a lane in. Stations appear, move
// between peers and to our own side, and tables are swapped, also between the forwarder and the flood. The oracle keeps a map of where
// each station was heard last, and a copy of every frame.
type bridgeModel struct {
	t       *packettest.Tape
	bridge  *Bridge
	out, in *Lane
	inside  *script
	under   *script

	peers    map[uint32]*packet.Hop
	from     map[netip.Addr]uint32
	stations map[[6]byte]uint32 // heard behind whom
	last     *Table             // that was made
	next     *Table             // published while the next flood asks for the peers
	flooding []*packet.Hop      // whom floods of this turn go to
	drops    [2]map[packet.Drop]uint64
	copied   uint64
}

// stationMAC is one of the stations that may be anywhere; MACs of vendors, groups, and those no bridge forwards.
func stationMAC(t *packettest.Tape) [6]byte {
	return packettest.Pick(t, [6]byte{2, 9, 0, 0, 0, byte(t.N(12))}, [6]byte{0x52, 0x54, 0, byte(t.N(4)), 0, 1})
}

func playBridge(t *packettest.Tape) error {
	m := &bridgeModel{t: t, bridge: NewBridge(), inside: &script{}, under: &script{}, stations: map[[6]byte]uint32{}}
	m.drops = [2]map[packet.Drop]uint64{{}, {}}
	stage := vxlan.New(vxlan.Config{VNI: modelVNI, Inner: packet.Ethernet})
	m.out = NewLane(LaneConfig{Direction: Out, Inside: End{Queue: m.inside}, Forward: m.bridge,
		Ways: []Way{{Wrap: []packet.Stage{stage}, Outside: End{Queue: m.inside}}}, Room: 2000, Link: packet.EthernetHeader, Flood: m.peersNow})
	m.in = NewLane(LaneConfig{Direction: In, Inside: End{Queue: m.under}, Forward: m.bridge,
		Ways: []Way{{Wrap: []packet.Stage{stage}, Outside: End{Queue: m.under}}}, Room: 2000, Link: packet.EthernetHeader})
	m.bridge.Publish(m.table())
	for more := true; more; more = t.More() {
		var err error
		switch t.N(10) {
		default:
			err = m.send()
		case 4, 5, 6, 7:
			err = m.receive()
		case 8:
			if h := m.peers[uint32(t.N(5))]; h != nil { // what is published learns it as well
				h.Path.SetMTU(packettest.Pick(t, 1450, 1450, 1400))
			}
			peers, from, last := m.peers, m.from, m.last
			if next := m.table(); t.Chance(3) { // somebody thinks better of it: what is published was not touched
				m.peers, m.from, m.last = peers, from, last
			} else {
				m.bridge.Publish(next)
			}
		}
		if err == nil {
			err = m.adds()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// table is another table, made anew or of the last one, and the oracle's view of it. Stations that were heard behind a peer that is
// gone are not forgotten.
func (m *bridgeModel) table() *Table {
	t := m.t
	anew := m.last == nil || t.Chance(3)
	n := t.N(5)
	if t.Chance(12) {
		n = 60 + t.N(40) // so many that floods meet their limit
	}
	table := NewTable()
	table.SetStation(own)
	table.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	if anew {
		m.peers, m.from = map[uint32]*packet.Hop{}, map[netip.Addr]uint32{}
	} else {
		table, m.peers, m.from = m.last.Clone(), maps.Clone(m.peers), maps.Clone(m.from)
		for id := range uint32(100) {
			if h := m.peers[id]; h != nil && (int(id) >= n || t.Chance(3)) {
				table.Remove(netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", id+2)))
				table.RemovePeer(h.Path.Dst.Addr())
				table.RemoveStation(h)
				delete(m.peers, id)
				delete(m.from, h.Path.Dst.Addr())
			}
		}
	}
	for id := range n {
		if m.peers[uint32(id)] != nil || t.Chance(6) {
			continue
		}
		h := node(id)
		h.Path.SetMTU(packettest.Pick(t, 1450, 1450, 1400))
		h.Peer.VNI = modelVNI
		m.peers[h.Peer.ID], m.from[h.Path.Dst.Addr()] = h, h.Peer.ID
		table.Insert(netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", h.Peer.ID+2)), h)
		table.InsertPeer(h.Path.Dst.Addr(), h)
		table.InsertStation(h)
	}
	m.last = table
	return table
}

// peersNow is LaneConfig.Flood.
func (m *bridgeModel) peersNow() []*packet.Hop {
	if m.next != nil {
		m.bridge.Publish(m.next)
		m.next = nil
	}
	m.flooding = m.bridge.Peers()
	return m.flooding
}

// sentFrame is one that left, or must.
type sentFrame struct {
	frame   []byte
	flooded bool
}

// send lets the inside send a batch of frames.
func (m *bridgeModel) send() error {
	t := m.t
	count := packettest.Pick(t, 1, 1+t.N(20), packet.BatchSize)
	type plan struct {
		frame []byte
		to    *packet.Hop // nil = everyone
		drop  packet.Drop
	}
	var plans []plan
	var least *packet.Hop
	for _, h := range m.peers {
		if least == nil || h.Path.MTU() < least.Path.MTU() {
			least = h
		}
	}
	for i := 0; i < count; {
		dst, src := packettest.Pick(t, broadcast, stationMAC(t), stationMAC(t), stationMAC(t), [6]byte{0x33, 0x33, 0, 0, 0, 1}), stationMAC(t)
		if t.Chance(8) {
			dst = [6]byte{1, 0x80, 0xc2, 0, 0, byte(t.N(20))}
		}
		if t.Chance(12) {
			src = own
		}
		for range min(t.Run(), count-i) {
			payload := make([]byte, packettest.Pick(t, 46, 1400, 1401, 1450, 1451, t.N(1500)))
			t.Fill(payload)
			p := plan{frame: eth(dst, src, experimental, payload)}
			if t.Chance(30) {
				p.frame = p.frame[:t.N(len(p.frame))]
			}
			plans = append(plans, p)
			m.inside.given = append(m.inside.given, given{data: p.frame})
			i++
		}
	}
	floods := false
	for i := range plans { // what the Bridge must say
		p := &plans[i]
		if len(p.frame) < packet.EthernetHeader {
			p.drop = packet.TooShort
			continue
		}
		dst, src := [6]byte(p.frame[0:]), [6]byte(p.frame[6:])
		if dst[0] == 1 && dst[1] == 0x80 && dst[2] == 0xc2 && dst[3] == 0 && dst[4] == 0 && dst[5] < 16 {
			p.drop = packet.ReservedMAC
			continue
		}
		if src != own {
			delete(m.stations, src) // it is on our side
		}
		mtu := least
		if peer, known := m.stations[dst]; known && dst[0]&1 == 0 && m.peers[peer] != nil {
			p.to, mtu = m.peers[peer], m.peers[peer]
		}
		if mtu != nil && len(p.frame)-packet.EthernetHeader > mtu.Path.MTU() {
			p.drop = packet.TooBig
			continue
		}
		floods = floods || p.to == nil
	}
	if floods && t.Chance(6) { // a swap between the forwarder and the flood
		m.next = m.table()
	}
	m.flooding = nil
	if err := m.out.Turn(); err != nil {
		return err
	}
	// What the flood must make of it: by the peers that it has asked for.
	want := map[netip.AddrPort][]sentFrame{}
	made := 0
	for i := range plans {
		p := &plans[i]
		wire := append([]byte{8, 0, 0, 0, modelVNI >> 16, modelVNI >> 8 & 0xff, modelVNI & 0xff, 0}, p.frame...)
		switch {
		case p.drop != packet.Alive:
		case p.to != nil:
			want[p.to.Path.Dst] = append(want[p.to.Path.Dst], sentFrame{wire, false})
		case len(m.flooding) == 0:
			p.drop = packet.NoRoute
		case made > 0 && made+len(m.flooding)-1 > 64*packet.BatchSize:
			p.drop = packet.FloodLimit
		default:
			made += len(m.flooding) - 1
			for _, h := range m.flooding {
				want[h.Path.Dst] = append(want[h.Path.Dst], sentFrame{wire, true})
			}
		}
		if p.drop != packet.Alive {
			m.drops[Out][p.drop]++
		}
	}
	m.copied += uint64(made)
	t.Step(count + made)
	got := map[netip.AddrPort][][]byte{}
	for _, s := range m.inside.sent {
		got[s.to] = append(got[s.to], s.data)
	}
	for to, frames := range got {
		if len(want[to]) == 0 {
			return fmt.Errorf("%d frames went to %v, which should get none", len(frames), to)
		}
	}
	for to, frames := range want {
		if err := sameFrames(got[to], frames); err != nil {
			return fmt.Errorf("to %v: %w", to, err)
		}
	}
	return nil
}

// sameFrames says whether a peer got all frames, each kind in its order, and none that was for it alone ahead of an earlier flood.
func sameFrames(got [][]byte, want []sentFrame) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d frames came, want %d", len(got), len(want))
	}
	for i, frame := range got {
		k := slices.IndexFunc(want, func(w sentFrame) bool { return bytes.Equal(w.frame, frame) })
		if k < 0 {
			return fmt.Errorf("frame %d of %d: %w", i, len(got), packettest.Same(frame, want[0].frame))
		}
		for _, w := range want[:k] {
			if w.flooded || !want[k].flooded {
				return fmt.Errorf("frame %d of %d (flooded: %v) is ahead of an earlier one (flooded: %v)", i, len(got), want[k].flooded, w.flooded)
			}
		}
		want = append(want[:k:k], want[k+1:]...)
	}
	return nil
}

// receive brings a batch of frames from peers and from others.
func (m *bridgeModel) receive() error {
	t := m.t
	var want [][]byte
	for range 1 + t.N(40) {
		id := uint32(t.N(5))
		from := node(int(id)).Path.Dst
		src, dst := stationMAC(t), packettest.Pick(t, broadcast, own, stationMAC(t))
		switch t.N(12) {
		case 0:
			src = own // ours
		case 1:
			src = node(t.N(5)).Peer.MAC // a node's own
		case 2:
			src[0] |= 1
		case 3:
			dst = [6]byte{1, 0x80, 0xc2, 0, 0, byte(t.N(20))}
		}
		payload := make([]byte, 46+t.N(1000))
		t.Fill(payload)
		frame := eth(dst, src, experimental, payload)
		sound := true
		if t.N(3) == 0 { // IP, whose source must be the peer's
			far := id + 2
			if sound = !t.Chance(4); !sound {
				far = id + 3
			}
			frame = eth(dst, src, packet.EtherTypeIPv4, packettest.UDP(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(far), 9}), 1),
				netip.MustParseAddrPort("10.244.1.5:2"), t.N(1000), byte(t.N(256))))
		}
		wire := append([]byte{8, 0, 0, 0, modelVNI >> 16, modelVNI >> 8 & 0xff, modelVNI & 0xff, 0}, frame...)
		m.under.given = append(m.under.given, given{data: wire, from: from})
		drop := packet.Alive
		h := m.peers[id]
		owner := func() *packet.Hop {
			for _, o := range m.peers {
				if o.Peer.MAC == src {
					return o
				}
			}
			return nil
		}
		switch o := owner(); {
		case h == nil:
			drop = packet.UnknownPeer
		case src[0]&1 != 0:
			drop = packet.BadHeader
		case src == own || o != nil && o != h:
			drop = packet.WrongSource
		case dst[0] == 1 && dst[1] == 0x80 && dst[5] < 16:
			drop = packet.ReservedMAC
		case !sound:
			drop = packet.WrongSource
		}
		if drop != packet.Alive {
			m.drops[In][drop]++
			continue
		}
		m.stations[src] = id
		want = append(want, frame)
	}
	t.Step(len(m.under.given))
	if err := m.in.Turn(); err != nil {
		return err
	}
	if len(m.under.sent) != len(want) {
		return fmt.Errorf("%d frames reach the inside, want %d", len(m.under.sent), len(want))
	}
	for i, s := range m.under.sent {
		if err := packettest.Same(s.data, want[i]); err != nil {
			return fmt.Errorf("delivered frame %d: %w", i, err)
		}
	}
	return nil
}

func (m *bridgeModel) adds() error {
	for dir, l := range []*Lane{m.out, m.in} {
		s := l.Stats()
		drops := s.Drops()
		copied := []uint64{m.copied, 0}[dir]
		if s.Received+s.Copied != s.Sent+drops.Total() || s.Copied != copied {
			return fmt.Errorf("lane %v: received %d, copied %d (want %d), sent %d, dropped %v", Direction(dir), s.Received, s.Copied, copied, s.Sent, drops.Map())
		}
		for d := packet.Alive + 1; d < packet.NumDrops; d++ {
			if drops[d] != m.drops[dir][d] {
				return fmt.Errorf("lane %v: %d frames died as %v, want %d", Direction(dir), drops[d], d, m.drops[dir][d])
			}
		}
	}
	return nil
}

func TestBridgeModel(t *testing.T) { packettest.Sequences(t, 300_000, playBridge) }
func FuzzBridgeModel(f *testing.F) { packettest.FuzzSequences(f, playBridge) }

// TestFDBModel drives the forwarding database with stations of one set, so that it forgets, against a list: who is heard of within the
// ageing time is known, unless eight others of the set were heard since.
func TestFDBModel(t *testing.T) { packettest.Sequences(t, 500_000, playFDB) }
func FuzzFDBModel(f *testing.F) { packettest.FuzzSequences(f, playFDB) }

// oneSet are twelve stations that share a set, and two of others.
var oneSet = func() (macs [][6]byte) {
	for i := 0; len(macs) < 14; i++ {
		mac := [6]byte{2, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}
		if (anFDB.set(key(mac)) == anFDB.set(key([6]byte{2}))) == (len(macs) < 12) {
			macs = append(macs, mac)
		}
	}
	return macs
}()

var anFDB fdb // to ask which station shares a set with which

// heardAt is where a station was heard last.
type heardAt struct {
	peer uint32
	at   uint64 // seconds
}

func playFDB(t *packettest.Tape) error {
	var f fdb
	heard := map[[6]byte]heardAt{} // all that were ever heard and not forgotten, or displaced
	now := time.Duration(0)
	known := func(mac [6]byte) (heardAt, bool) {
		s, ok := heard[mac]
		return s, ok && seconds(now) < s.at+600
	}
	for t.More() {
		now += time.Duration(packettest.Pick(t, 0, 0, 0, 1, 1, t.N(200), 599, 600)) * time.Second
		mac := packettest.Pick(t, oneSet...)
		for range min(t.Run(), 20) {
			t.Step(1)
			switch t.N(8) {
			case 0:
				f.forget(mac)
				delete(heard, mac)
			case 1, 2, 3, 4:
				peer := uint32(t.N(3))
				f.learn(mac, peer, now)
				if _, had := heard[mac]; !had {
					if err := displaced(&f, mac, heard); err != nil {
						return err
					}
				}
				heard[mac] = heardAt{peer, seconds(now)}
			}
			for _, m := range oneSet {
				want, ok := known(m)
				peer, got := f.lookup(m, now)
				if got != ok || ok && peer != want.peer {
					return fmt.Errorf("station %x is behind %d (%v), want %d (%v)", m, peer, got, want.peer, ok)
				}
			}
			mac = oneSet[(slices.Index(oneSet, mac)+t.N(3))%len(oneSet)]
		}
	}
	return nil
}

// displaced finds who had to go for a station that is new in its set. That is nobody while there is room, and then one of those heard
// longest ago.
func displaced(f *fdb, mac [6]byte, heard map[[6]byte]heardAt) error {
	gone, there, longest := [][6]byte{}, 0, ^uint64(0)
	for m, s := range heard {
		if anFDB.set(key(m)) != anFDB.set(key(mac)) {
			continue
		}
		there++
		longest = min(longest, s.at)
		held := false
		for i := range f.set(key(m)) {
			held = held || f.set(key(m))[i].mac.Load() == key(m)
		}
		if !held {
			gone = append(gone, m)
		}
	}
	switch {
	case there < fdbWays && len(gone) == 0:
		return nil
	case there == fdbWays && len(gone) == 1 && heard[gone[0]].at == longest:
		delete(heard, gone[0])
		return nil
	}
	return fmt.Errorf("%d stations of %d went for a new one: %x", len(gone), there, gone)
}
