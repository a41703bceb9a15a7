package packet_test

import (
	"encoding/binary"
	"testing"

	"weft/packet"
)

// A GRE tunnel with checksums (ip link … type gre csum) leaves them to the device, as TCP and UDP do: there is no pseudo-header.
func TestFinishPartialOfGRE(t *testing.T) {
	ip := make([]byte, 20+8+21)
	ip[0], ip[8], ip[9] = 0x45, 64, 47
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 1, 1})
	packet.PutIPv4Checksum(ip)
	ip[20], ip[22] = 0x80, 8
	for i := 28; i < len(ip); i++ {
		ip[i] = byte(i)
	}
	for _, offset := range []int{4, 6} {
		b := packet.NewBatch(1, 256)
		b.SetLen(1)
		p := &b.Packets()[0]
		copy(p.Reset(), ip)
		p.Resize(len(ip))
		p.SetPartial(20, offset)
		packet.FinishPartial(p, 0)
		if offset != 4 {
			if p.Drop != packet.BadHeader {
				t.Errorf("a mark at %d: %v", offset, p.Drop)
			}
			continue
		}
		if p.Drop != packet.Alive {
			t.Fatalf("dropped: %v", p.Drop)
		}
		if sum := packet.Sum(p.Bytes()[20:], 0); sum != 0xffff {
			t.Errorf("sum %#04x", sum)
		}
	}
}
