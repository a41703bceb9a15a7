package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"weft/encap/ipudp"
	"weft/encap/sealed"
	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

// tamper is a step that damages a packet between two stages.
type tamper struct{ do func(p *packet.Packet) }

func (*tamper) Name() string              { return "tamper" }
func (*tamper) Overhead() packet.Overhead { return packet.Overhead{} }
func (s *tamper) Out(b *packet.Batch)     { s.In(b) }
func (s *tamper) In(b *packet.Batch) {
	for i := range b.Packets() {
		if s.do != nil {
			s.do(&b.Packets()[i])
		}
	}
}

// loaded is a queue that presents one packet in a state of its checksum. It takes packets as the kernel takes them from an inside
// port: nobody on this node looks at a checksum again that is handed over as unfinished.
type loaded struct {
	ip    []byte
	state packet.ChecksumState
	from  netip.AddrPort
	sent  [][]byte
}

func (q *loaded) Recv(b *packet.Batch) error {
	packettest.Load(&b.Slots()[0], q.ip, q.state)
	b.Slots()[0].From = q.from
	b.SetLen(1)
	q.sent = nil
	return nil
}

func (q *loaded) Send(b *packet.Batch) error {
	p := &b.Packets()[0]
	if p.Drop = packet.CheckPartial(p, 0); p.Drop != packet.Alive {
		return nil
	}
	data := bytes.Clone(p.Bytes())
	if _, _, partial := p.Partial(); partial {
		start, offset := packettest.Unfinish(data)
		packet.FinishChecksum(data, start, offset)
	}
	q.sent = append(q.sent, data)
	return nil
}

// wire is a queue to an underlay that keeps the last packet.
type wire struct{ loaded }

func (w *wire) Send(b *packet.Batch) error {
	w.sent = append(w.sent, bytes.Clone(b.Packets()[0].Bytes()))
	return nil
}

// tampered is a forwarder whose packets somebody damages behind it, on the way in.
type tampered struct {
	*Route
	by *tamper
}

func (f tampered) In(b *packet.Batch) {
	f.Route.In(b)
	f.by.In(b)
}

// TestCorruptedSlot damages a packet's bytes and its window at every place between the stages of two nodes. It dies by name, or
// arrives as it was sent, or its checksum is as wrong as its bytes; what arrives wrong and unnoticed is what no sum has yet.
func TestCorruptedSlot(t *testing.T) {
	const vni = 7
	near, far := netip.MustParseAddrPort("192.0.2.1:8473"), netip.MustParseAddrPort("192.0.2.2:8473")
	ones, twos := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")
	ones6, twos6 := netip.MustParsePrefix("fd00:0:0:1::/64"), netip.MustParsePrefix("fd00:0:0:2::/64")
	mac := [6]byte{2, 0, 0, 0, 0, 2}
	tableOf := func(rco bool, id uint32, at netip.AddrPort, own, own6, others, others6 netip.Prefix) *Route {
		h := &packet.Hop{Peer: packet.Peer{ID: id, VNI: vni, MAC: mac, RCO: rco}, Path: packet.NewPath(netip.Addr{}, at, 1418)}
		tb := NewTable()
		tb.InsertSelf(own)
		tb.InsertSelf(own6)
		tb.Insert(others, h)
		tb.Insert(others6, h)
		tb.InsertPeer(at.Addr(), h)
		r := NewRoute()
		r.Publish(tb)
		return r
	}
	one, two := keyed(t, sealed.AES128GCM, 1, nil)
	chains := map[string]struct {
		rco     bool
		out, in []packet.Stage
	}{
		"vxlan": {false, []packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac})}, []packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac})}},
		"rco": {true, []packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac, RCO: true})},
			[]packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac, RCO: true})}},
		"ipudp": {false, []packet.Stage{ipudp.New(1500)}, []packet.Stage{ipudp.New(1500)}},
		"rco sealed": {true, []packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac, RCO: true}), one.Stage(0)},
			[]packet.Stage{vxlan.New(vxlan.Config{VNI: vni, MAC: mac, RCO: true}), two.Stage(0)}},
	}
	total, unnoticed := 0, map[string]int{}
	drops := map[packet.Drop]int{}
	for name, chain := range chains {
		outRoute, inRoute := tableOf(chain.rco, 2, far, ones, ones6, twos, twos6), tableOf(chain.rco, 1, near, twos, twos6, ones, ones6)
		between := make([]*tamper, 2*len(chain.out)+2) // before each stage out and behind it, and the same in
		for i := range between {
			between[i] = &tamper{}
		}
		var outWrap, inWrap []packet.Stage
		for i, s := range chain.out {
			outWrap = append(outWrap, between[i], s)
			inWrap = append(inWrap, between[len(chain.out)+1+i], chain.in[i])
		}
		outWrap = append(outWrap, between[len(chain.out)])
		inside, under, inner := &loaded{from: near}, &wire{}, &loaded{from: near}
		out := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: inside}, Forward: outRoute,
			Ways: []Way{{Wrap: outWrap, Outside: End{Queue: under}}}, Room: 2000})
		in := NewLane(LaneConfig{Direction: In, Inside: End{Queue: inner}, Forward: tampered{inRoute, between[len(between)-1]},
			Ways: []Way{{Wrap: inWrap, Outside: End{Queue: &under.loaded}}}, Room: 2000})
		under.from = near

		for _, ends := range [][2]string{{"10.244.1.2:1000", "10.244.2.3:2000"}, {"[fd00:0:0:1::2]:1000", "[fd00:0:0:2::3]:2000"}} {
			ip := packettest.UDP(netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1]), 40, 3)
			for _, state := range []packet.ChecksumState{packet.ChecksumComplete, packet.ChecksumPartial} {
				for where, place := range between {
					longest := len(ip) + vxlan.New(vxlan.Config{}).Overhead().Total() + one.Stage(0).Overhead().Total()
					for damage := -4; damage < longest; damage++ {
						place.do = func(p *packet.Packet) {
							switch {
							case damage >= 0 && damage < p.Len():
								p.Bytes()[damage] ^= 1 << (damage % 8)
							case damage == -1:
								p.Resize(p.Len() - 1)
							case damage == -2:
								p.Resize(p.Len() + 1)
							case damage == -3:
								p.Strip(1)
							case damage == -4:
								p.Prepend(1)
							}
						}
						inside.ip, inside.state = ip, state
						under.sent, inner.sent = nil, nil
						if err := out.Turn(); err != nil {
							t.Fatal(err)
						}
						if len(under.sent) == 1 {
							under.ip = under.sent[0]
							if err := in.Turn(); err != nil {
								t.Fatal(err)
							}
						}
						place.do = nil
						total++
						if len(inner.sent) == 0 || bytes.Equal(inner.sent[0], ip) {
							continue
						}
						if why := excuse(inner.sent[0], ip, state == packet.ChecksumPartial); why == "" {
							t.Errorf("%s, %s, checksum state %d, place %d, damage %d: delivered, with sums that are right:\n%x\nsent was\n%x",
								name, ends[0], state, where, damage, inner.sent[0], ip)
						} else {
							unnoticed[why]++
						}
					}
				}
			}
		}
		for _, l := range []*Lane{out, in} {
			s := l.Stats()
			for d, n := range s.Drops() {
				drops[packet.Drop(d)] += int(n)
			}
		}
	}
	t.Logf("%d damages; drops %v; delivered otherwise than sent: %v", total, fmt.Sprint(drops), unnoticed)
}

// excuse says why a packet may arrive that is not the one that was sent; "" if it may not.
func excuse(got, sent []byte, unfinished bool) string {
	v, drop := packet.ParseIP(got)
	if drop != packet.Alive {
		return "it is no IP packet, which the receiver sees"
	}
	if !v.IPv4ChecksumOK() {
		return "the sum of its IPv4 header is wrong, which the receiver sees"
	}
	if !v.VerifyTransport() {
		return "its checksum is wrong, which the receiver sees"
	}
	if bytes.Equal(v.Bytes(), sent) {
		return "it is whole, and what is behind its own length is read by nobody"
	}
	if len(got) == len(sent) {
		start, front := packet.IPv4Header, 0
		if got[0]>>4 == 6 {
			start, front = packet.IPv6Header, 8
		}
		rest := bytes.Clone(got)
		copy(rest[:front], sent[:front])
		if front > 0 && bytes.Equal(rest, sent) && binary.BigEndian.Uint16(got[4:]) == binary.BigEndian.Uint16(sent[4:]) && got[6] == sent[6] {
			return "no sum has IPv6's class, label and hop limit"
		}
		if unfinished && bytes.Equal(got[:start], sent[:start]) && bytes.Equal(got[start+4:start+6], sent[start+4:start+6]) {
			return "no sum of its ports and payload had been made yet"
		}
	}
	return ""
}
