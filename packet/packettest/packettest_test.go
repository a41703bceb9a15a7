package packettest

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"weft/packet"
)

// shim is the smallest honest stage: a 4-byte header that holds the length of the inner packet.
type shim struct{}

func (shim) Name() string              { return "shim" }
func (shim) Overhead() packet.Overhead { return packet.Overhead{Front: 4} }

func (shim) Out(b *packet.Batch) {
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		n := p.Len()
		if start, offset, ok := p.Partial(); ok {
			l4 := p.Bytes()[start:]
			binary.BigEndian.PutUint16(l4[offset:], ^Sum(l4, 0))
		}
		binary.BigEndian.PutUint32(p.Prepend(4), uint32(n))
	}
}

func (shim) In(b *packet.Batch) {
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		if p.Len() < 4 {
			p.Drop = packet.TooShort
		} else if int(binary.BigEndian.Uint32(p.Bytes())) != p.Len()-4 {
			p.Drop = packet.BadHeader
		} else {
			p.Strip(4)
		}
	}
}

func TestStageSuite(t *testing.T) {
	hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.1:4789"), 1400)}
	for _, layer := range []packet.Layer{packet.IP, packet.Ethernet} {
		Stage(t, func() packet.Stage { return shim{} }, hop, layer)
		Checksums(t, func() packet.Stage { return shim{} }, hop, layer)
	}
}

func TestUDPChecksums(t *testing.T) {
	for _, addrs := range [][2]string{{"10.0.0.1:1", "10.0.0.2:2"}, {"[fd00::1]:1", "[fd00::2]:2"}} {
		for n := range 64 {
			p := UDP(netip.MustParseAddrPort(addrs[0]), netip.MustParseAddrPort(addrs[1]), n, 7)
			if !ValidTransport(p) {
				t.Errorf("%s, %d bytes: invalid checksum", addrs[0], n)
			}
			p[len(p)-1] ^= 1
			if ValidTransport(p) {
				t.Errorf("%s, %d bytes: a flipped bit passes", addrs[0], n)
			}
		}
	}
	// RFC 1071 §3: the worked example.
	if got := Sum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}, 0); got != 0xddf2 {
		t.Errorf("Sum = %#x, want 0xddf2 (RFC 1071)", got)
	}
}

func TestPipe(t *testing.T) {
	const mtu = 1500
	for _, layer := range []packet.Layer{packet.IP, packet.Ethernet, packet.Tunnel} {
		Port(t, func(t *testing.T) (packet.Port, Far) {
			near, far := Pipe(layer, 1, mtu+100)
			t.Cleanup(func() { far.Close() })
			q := far.Queues()[0]
			out, in := packet.NewBatch(1, mtu+1000), packet.NewBatch(1, mtu+1000)
			hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:4789"), 0)}
			return near, Far{
				Hop: hop, From: hop.Path.Dst.Addr(), MTU: mtu,
				Write: func(p []byte) error {
					out.Slots()[0].Resize(copy(out.Slots()[0].Reset(), p))
					out.Slots()[0].Hop = hop
					out.SetLen(1)
					return q.Send(out)
				},
				Read: func() ([]byte, error) {
					watchdog(t, far)
					err := q.Recv(in)
					return in.Slots()[0].Bytes(), err
				},
				Oversize: make([]byte, mtu+200), OversizeDrop: packet.Truncated,
			}
		})
	}
}

func TestSourceSink(t *testing.T) {
	packets := [][]byte{{1}, {2, 2}, make([]byte, 100)}
	src, sink, b := &Source{Packets: packets}, &Sink{}, packet.NewBatch(6, 50)
	if err := src.Recv(b); err != nil {
		t.Fatal(err)
	}
	var drops packet.Drops
	b.Compact(&drops)
	if err := sink.Send(b); err != nil {
		t.Fatal(err)
	}
	if sink.Packets != 4 || sink.Bytes != 6 || drops[packet.Truncated] != 2 {
		t.Errorf("sink %+v, drops %v, want 4 packets, 6 bytes, 2 truncated", *sink, drops.Map())
	}
}
