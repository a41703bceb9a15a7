package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

func openTAPIn(t *testing.T, ns *nettest.NS, queues, mtu int) packet.Port {
	t.Helper()
	var p packet.Port
	var err error
	ns.Do(func() { p, err = OpenTAP(Config{Name: "weft0", MTU: testMTU}, queues) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	timer := time.AfterFunc(patience, func() { p.Close() })
	t.Cleanup(func() { timer.Stop() })
	if err := ns.Netlink().LinkSetMTU(linkIn(t, ns, "weft0"), mtu); err != nil {
		t.Fatal(err)
	}
	if err := ns.LinkUp("weft0"); err != nil {
		t.Fatal(err)
	}
	return p
}

// frameTap is the kernel's side of a TAP device: whole frames.
func frameTap(t *testing.T, ns *nettest.NS) *wiretap {
	t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	w := &wiretap{buf: make([]byte, 1<<16), to: unix.SockaddrLinklayer{Protocol: all, Ifindex: linkIn(t, ns, "weft0").Attrs().Index}}
	var err error
	ns.Do(func() { w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	for _, err := range []error{
		unix.Bind(w.fd, &w.to),
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *wiretap) writeFrame(frame []byte) error { return unix.Sendto(w.fd, frame, 0, &w.to) }

func TestTAPConformance(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("Queues/%d", queues), func(t *testing.T) {
			packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
				p := openTAPIn(t, ns, queues, testMTU+100)
				if p.Layer() != packet.Ethernet {
					t.Fatalf("layer %v", p.Layer())
				}
				if queues > 1 { // the kernel picks a queue by the flow: leave it one
					for _, q := range p.Queues()[1:] {
						detach(t, q)
					}
				}
				w := frameTap(t, ns)
				src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
				return p, packettest.Far{
					MTU: testMTU + packet.EthernetHeader, Write: w.writeFrame, Read: w.read,
					Oversize:     packettest.Ethernet([6]byte{2}, [6]byte{2, 1}, packettest.UDP(src, dst, testMTU, 0)),
					OversizeDrop: packet.Truncated,
				}
			})
		})
	}
}

// TestSuperFramesAreCut: a TCP super-packet in a frame becomes frames that fit, each behind the same Ethernet header.
func TestSuperFramesAreCut(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%v", v6), func(t *testing.T) {
			ns := nettest.New(t)
			p := openTAPIn(t, ns, 1, testMTU)
			w := frameTap(t, ns)
			const size, eth = 20000, packet.EthernetHeader
			super := packettest.Ethernet([6]byte{2, 2}, [6]byte{2, 1}, tcpSuper(t, v6, size))
			header := len(super) - size - 20
			b := packet.NewBatch(1, 1<<16)
			s := &b.Slots()[0]
			s.Resize(copy(s.Reset(), super))
			binary.BigEndian.PutUint16(s.Bytes()[header+16:], packettest.PseudoSum(super[eth:], size+20))
			s.SetPartial(header, 16)
			b.SetLen(1)
			if err := p.Queues()[0].Send(b); err != nil || s.Drop != packet.Alive {
				t.Fatalf("%v, dropped: %v", err, s.Drop)
			}
			var payload []byte
			for len(payload) < size {
				got, err := w.read()
				if err != nil {
					t.Fatal(err)
				}
				if len(got) > eth+testMTU || !bytes.Equal(got[:eth], super[:eth]) || !packettest.ValidTransport(got[eth:]) {
					t.Fatalf("%d bytes, header %x, checksum right: %v", len(got), got[:eth], packettest.ValidTransport(got[eth:]))
				}
				payload = append(payload, got[header+20:]...)
			}
			if !bytes.Equal(payload, super[header+20:]) {
				t.Error("the segments' payload is not the super-packet's")
			}
		})
	}
}

// TestTAPKind: a TAP is not opened over a TUN of its name, nor the other way round.
func TestTAPKind(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	openTAPIn(t, ns, 1, testMTU)
	ns.Do(func() {
		if p, err := Open(Config{Name: "weft0", MTU: testMTU}, 1); err == nil {
			p.Close()
			t.Error("a TUN was opened over a TAP")
		}
	})
}
