package packet

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// unfinished loads a sample whose checksum is marked as unfinished, front bytes of a link header before it.
func unfinished(t testing.TB, ip []byte, front int) *Packet {
	t.Helper()
	v := mustParse(t, ip)
	start, offset, _ := v.checksumField()
	p := &NewBatch(1, 2048).Slots()[0]
	room := p.Reset()
	copy(room[front:], ip)
	p.Resize(front + len(ip))
	binary.BigEndian.PutUint16(p.Bytes()[front+start+offset:], PseudoSum(v.addrs(), v.proto, len(ip)-start))
	p.SetPartial(front+start, offset)
	return p
}

// whyUnseen names why a change of byte i cannot be seen where an unfinished checksum is judged; "" where it must be.
func whyUnseen(ip []byte, transport, offset, i int) string {
	field := transport + offset
	switch {
	case i == field || i == field+1:
		return ""
	case offset == udpChecksum && i >= transport+4 && i < transport+6:
		return "" // UDP's own length
	case i >= transport:
		return "no sum of it has been made yet"
	case ip[0]>>4 == 4:
		switch i {
		case 0, ip4TotalLen, ip4TotalLen + 1, ip4Proto:
			return ""
		case ip4Frag, ip4Frag + 1:
			return "" // but for DF, which a caller tells apart
		}
		if i >= ip4Src && i < ip4Dst+4 {
			return ""
		}
		return "IPv4's header checksum, whole all the time, stands for it"
	case i == ip6PayloadLen || i == ip6PayloadLen+1 || i == ip6NextHeader || i >= ip6Src && i < ip6Dst+16:
		return ""
	case i >= IPv6Header:
		return "no sum has IPv6's options and routes"
	}
	return "no sum has IPv6's class, label and hop limit"
}

// TestCorruptedBetweenStages changes every bit of a packet between the mark and the end of its checksum. A change in what the
// pseudo-header has, or in a length, kills it by name; for the others whyUnseen says why nobody here can know.
func TestCorruptedBetweenStages(t *testing.T) {
	seen, unseen := 0, map[string]int{}
	for _, c := range corpus() {
		if !c.hasChecksum {
			continue
		}
		for _, front := range []int{0, EthernetHeader} {
			for bit := range 8 * len(c.bytes) {
				p := unfinished(t, c.bytes, front)
				start, offset, _ := p.Partial()
				i, mask := bit/8, byte(1)<<(bit%8)
				why := whyUnseen(p.Bytes()[front:], start-front, offset, i)
				if c.bytes[0]>>4 == 4 && i == ip4Frag && mask&0xc0 != 0 {
					why = "IPv4's header checksum, whole all the time, stands for it" // DF and the reserved bit
				}
				if c.bytes[0]>>4 == 6 && i == 0 && mask&0xf0 != 0 {
					why = "" // the version
				}
				p.Bytes()[front+i] ^= mask
				FinishPartial(p, front)
				switch {
				case why == "" && p.Drop == Alive:
					t.Errorf("%s, %d in front: bit %d of byte %d changed, and the checksum was finished", c.name, front, bit%8, i)
				case why != "" && i >= start-front && p.Drop != Alive:
					t.Errorf("%s: bit %d of byte %d changed: %v, though %s", c.name, bit%8, i, p.Drop, why)
				case why == "":
					seen++
				default:
					unseen[why]++
				}
				if c.bytes[0]>>4 == 4 && p.Drop == Alive && i < start-front && mustParse(t, p.Bytes()[front:]).IPv4ChecksumOK() {
					t.Errorf("%s: bit %d of byte %d changed, and the header's checksum is right", c.name, bit%8, i)
				}
			}
		}
	}
	t.Logf("%d changes seen; not seen %v", seen, unseen)
}

// TestOtherBytesAreNotSummed: the sum is made of the bytes that the pseudo-header sum was made for, or not at all.
func TestOtherBytesAreNotSummed(t *testing.T) {
	for _, c := range corpus() {
		if !c.hasChecksum {
			continue
		}
		for name, spoil := range map[string]func(p *Packet){
			"cut short":          func(p *Packet) { p.Resize(p.Len() - 1) },
			"more behind":        func(p *Packet) { p.Resize(p.Len() + 1) },
			"moved to the left":  func(p *Packet) { p.Prepend(1) },
			"moved to the right": func(p *Packet) { p.Strip(1) },
			"nothing left":       func(p *Packet) { p.Resize(0) },
			"another start":      func(p *Packet) { s, o, _ := p.Partial(); p.SetPartial(s+2, o) },
			"another field":      func(p *Packet) { s, o, _ := p.Partial(); p.SetPartial(s, o^(tcpChecksum^udpChecksum)) },
			"the whole checksum": func(p *Packet) { copy(p.Bytes(), c.bytes) },
			"another's header": func(p *Packet) {
				other := find(t, map[bool]string{true: "udp4", false: "udp6"}[c.bytes[0]>>4 == 4])
				copy(p.Bytes(), other.bytes[:other.transport])
			},
			"the length of both headers": func(p *Packet) { // by two bytes less, consistently
				p.Resize(p.Len() - 2)
				b, at := p.Bytes(), ip6PayloadLen
				if b[0]>>4 == 4 {
					at = ip4TotalLen
				}
				binary.BigEndian.PutUint16(b[at:], binary.BigEndian.Uint16(b[at:])-2)
				if s, _, _ := p.Partial(); c.proto == ProtoUDP {
					binary.BigEndian.PutUint16(b[s+4:], binary.BigEndian.Uint16(b[s+4:])-2)
				}
			},
		} {
			p := unfinished(t, c.bytes, 0)
			before := fmt.Sprintf("%x", p.Bytes()[:c.transport])
			if spoil(p); name == "another's header" && fmt.Sprintf("%x", p.Bytes()[:c.transport]) == before {
				continue // it is the same
			}
			was := fmt.Sprintf("%x", p.Bytes())
			if FinishPartial(p, 0); p.Drop == Alive {
				t.Errorf("%s, %s: finished", c.name, name)
			}
			if got := fmt.Sprintf("%x", p.Bytes()); got != was {
				t.Errorf("%s, %s: a dead packet was changed", c.name, name)
			}
		}
	}
}

// TestRoutingHeaderIsBelieved: while segments are left the final destination, which the sum has, is not in the IPv6 header.
func TestRoutingHeaderIsBelieved(t *testing.T) {
	p := unfinished(t, find(t, "tcp6").bytes, 0)
	tcp := p.Bytes()[IPv6Header:]
	b := behind6(extRouting, []byte{ProtoTCP, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, tcp)
	b[ip6Dst+15] ^= 9 // the next segment
	q := &NewBatch(1, 2048).Slots()[0]
	q.Resize(copy(q.Reset(), b))
	q.SetPartial(IPv6Header+24, tcpChecksum)
	if FinishPartial(q, 0); q.Drop != Alive || string(q.Bytes()[IPv6Header+24:]) != string(find(t, "tcp6").bytes[IPv6Header:]) {
		t.Errorf("%v: %x", q.Drop, q.Bytes())
	}
}

// TestOtherMemoryForgets: a mark is of bytes, not of a slot.
func TestOtherMemoryForgets(t *testing.T) {
	for name, change := range map[string]func(p *Packet){
		"Reset":    func(p *Packet) { p.Reset() },
		"Borrow":   func(p *Packet) { p.Borrow(make([]byte, 5000), Headroom, 4000) },
		"Exchange": func(p *Packet) { p.Exchange(make([]byte, 5000), Headroom, 4000) },
	} {
		p := unfinished(t, find(t, "tcp4").bytes, 0)
		p.SetSegment(100)
		p.SetOuter(7)
		change(p)
		if _, _, partial := p.Partial(); partial || p.Checksum() != ChecksumComplete || p.Segment() != 0 || len(p.Outer()) != 0 {
			t.Errorf("%s: partial %v, checksum %v, segment %d, %d outer bytes", name, partial, p.Checksum(), p.Segment(), len(p.Outer()))
		}
	}
}

// TestCutterJudgesUnfinished: the pieces get right sums, so the whole must have had the one that it was made for.
func TestCutterJudgesUnfinished(t *testing.T) {
	for _, name := range []string{"tcp4", "tcp6"} {
		p := unfinished(t, find(t, name).bytes, 0)
		var c Cutter
		if !c.Start(p.Bytes(), 1000, true) {
			t.Errorf("%s: not cut", name)
		}
		start, offset, _ := p.Partial()
		p.Bytes()[start+offset] ^= 1
		if c.Start(p.Bytes(), 1000, true) {
			t.Errorf("%s: cut, with another pseudo-header's sum", name)
		}
	}
}

func BenchmarkFinishPartial(b *testing.B) {
	for _, name := range []string{"tcp4", "udp6"} {
		for _, n := range []int{60, 1400} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				ip := serialize(ip4(ProtoTCP), tcp(TCPFlagACK), payload(n))
				if name == "udp6" {
					ip = serialize(ip6(ProtoUDP), udp(), payload(n))
				}
				p := unfinished(b, ip, 0)
				start, offset, _ := p.Partial()
				field := binary.BigEndian.Uint16(p.Bytes()[start+offset:])
				b.Run("sum", func(b *testing.B) { // of that: the sum alone
					for b.Loop() {
						binary.BigEndian.PutUint16(p.Bytes()[start+offset:], field)
						FinishChecksum(p.Bytes(), start, offset)
					}
				})
				b.Run("all", func(b *testing.B) {
					for b.Loop() {
						binary.BigEndian.PutUint16(p.Bytes()[start+offset:], field)
						p.SetPartial(start, offset)
						FinishPartial(p, 0)
					}
				})
				if p.Drop != Alive {
					b.Fatal(p.Drop)
				}
			})
		}
	}
}
