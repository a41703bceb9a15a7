package vxlan

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"

	"weft/packet"
	"weft/packet/packettest"
)

// unfinished returns a UDP packet whose checksum field holds the pseudo-header sum alone.
func unfinished(t *testing.T) []byte {
	t.Helper()
	ip := packettest.UDP(netip.MustParseAddrPort("10.244.1.5:1000"), netip.MustParseAddrPort("10.244.2.5:2000"), 60, 1)
	v, drop := packet.ParseIP(ip)
	if drop != packet.Alive {
		t.Fatal(drop)
	}
	binary.BigEndian.PutUint16(ip[26:], packet.PseudoSum(ip[12:20], 17, v.Len()-20))
	return ip
}

func rcoPair() (packet.Stage, *packet.Hop) {
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	return New(Config{VNI: 5, MAC: mac, Inner: packet.IP, MTU: 1450, RCO: true}), &packet.Hop{Peer: packet.Peer{VNI: 5, MAC: mac, RCO: true}}
}

func TestRCOLeavesTheSumToThePeer(t *testing.T) {
	s, hop := rcoPair()
	ip := unfinished(t)
	b := packet.NewBatch(1, 2000)
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), ip))
	p.SetPartial(20, 6)
	p.Hop = hop
	b.SetLen(1)
	s.Out(b)
	wire := p.Bytes()
	if h := binary.BigEndian.Uint64(wire); h != 0x0820_0000_0000_0500|0x80|(14+20)/2 {
		t.Fatalf("header %016x", h)
	}
	if got := wire[22+26 : 22+28]; string(got) != string(ip[26:28]) {
		t.Fatalf("the field changed on the way: % x, want % x", got, ip[26:28])
	}
	s.In(b)
	start, offset, partial := p.Partial()
	if p.Drop != packet.Alive || !p.RCO || !partial || start != 20 || offset != 6 {
		t.Fatalf("in: drop %v, rco %v, partial %v at %d+%d", p.Drop, p.RCO, partial, start, offset)
	}
	packet.FinishPartial(p, 0)
	if v, _ := packet.ParseIP(p.Bytes()); !v.VerifyTransport() {
		t.Error("the finished checksum is wrong")
	}
}

// TestRCOOnlyToPeersThatAnnouncedIt: everybody else gets a finished checksum and a plain header.
func TestRCOOnlyToPeersThatAnnouncedIt(t *testing.T) {
	s, hop := rcoPair()
	plain := *hop
	plain.Peer.RCO = false
	b := packet.NewBatch(1, 2000)
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), unfinished(t)))
	p.SetPartial(20, 6)
	p.Hop = &plain
	b.SetLen(1)
	s.Out(b)
	if h := binary.BigEndian.Uint64(p.Bytes()); h != 0x0800_0000_0000_0500 {
		t.Fatalf("header %016x", h)
	}
	if v, _ := packet.ParseIP(p.Bytes()[22:]); !v.VerifyTransport() {
		t.Error("the checksum is not finished")
	}
}

// TestRCOLies: a header that claims an unfinished checksum which is not there is refused, or a wrong
// checksum would be made right.
func TestRCOLies(t *testing.T) {
	s, hop := rcoPair()
	for name, spoil := range map[string]func(wire []byte){
		"whole checksum": func(w []byte) { w[22+26] ^= 0x55 },
		"other start":    func(w []byte) { w[7]++ },
		"TCP's field":    func(w []byte) { w[7] &^= rcoUDP },
	} {
		t.Run(name, func(t *testing.T) {
			b := packet.NewBatch(1, 2000)
			p := &b.Slots()[0]
			p.Resize(copy(p.Reset(), unfinished(t)))
			p.SetPartial(20, 6)
			p.Hop = hop
			b.SetLen(1)
			s.Out(b)
			spoil(p.Bytes())
			if s.In(b); p.Drop != packet.BadHeader {
				t.Errorf("drop %v", p.Drop)
			}
		})
	}
}

func TestFilterRCO(t *testing.T) {
	raw, err := FilterRCO()
	if err != nil {
		t.Fatal(err)
	}
	prog, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("disassemble")
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		sum, flag byte
		pass      bool
	}{
		{"plain, no sum", 0, 0x08, true}, {"plain, sum", 7, 0x08, true},
		{"rco, sum", 7, 0x28, true}, {"rco, no sum", 0, 0x28, false},
	} {
		d := make([]byte, 8+8+14)
		d[7], d[8], d[9] = c.sum, 0x08, c.flag&^0x08
		n, err := vm.Run(d)
		if err != nil || n > 0 != c.pass {
			t.Errorf("%s: keeps %d bytes, %v", c.name, n, err)
		}
	}
}
