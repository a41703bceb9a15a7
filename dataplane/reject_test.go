package dataplane

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/encap/ipudp"
	"weft/encap/sealed"
	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

// link is a UDP socket in memory: what is written to one end is read at the other.
type link struct {
	at      netip.AddrPort
	in, out chan []byte
	far     netip.AddrPort
}

func (l *link) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	msg, open := <-l.in
	if !open {
		return 0, netip.AddrPort{}, net.ErrClosed
	}
	return copy(b, msg), l.far, nil
}

func (l *link) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) {
	select {
	case l.out <- bytes.Clone(b):
	default: // full: lost, as datagrams are
	}
	return len(b), nil
}

func (l *link) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(l.at) }
func (l *link) Crowded() bool       { return false }

// keyed returns the managers of two nodes that have keys with each other: of node 1, at 192.0.2.1, and of node 2, at 192.0.2.2.
// now is the clock of both.
func keyed(t testing.TB, cipher sealed.Cipher, lanes int, now func() time.Time) (one, two *sealed.Manager) {
	t.Helper()
	var m [2]*sealed.Manager
	var private, public [2][32]byte
	links := [2]*link{}
	for i := range m {
		var err error
		if m[i], err = sealed.New(sealed.Config{Cipher: cipher, Lanes: lanes, Now: now}); err != nil {
			t.Fatal(err)
		}
		private[i] = [32]byte{1: byte(i + 1), 31: 64}
		if public[i], err = sealed.PublicKey(private[i]); err != nil {
			t.Fatal(err)
		}
		links[i] = &link{at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 8473), in: make(chan []byte, 64)}
	}
	for i := range m {
		links[i].out, links[i].far = links[1-i].in, links[1-i].at
		wait := m[i].Serve([]packet.Conn{links[i]})
		t.Cleanup(func() {
			close(links[i].in)
			wait()
		})
	}
	for i := range m {
		far := uint32(2 - i)
		err := m[i].Update(sealed.Identity{Private: private[i]}, []sealed.Peer{{ID: far, Name: "far", Public: public[1-i],
			Hop: &packet.Hop{Peer: packet.Peer{ID: far}, Path: packet.NewPath(netip.Addr{}, links[1-i].at, 1418)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); !m[0].Status()[2].Established || !m[1].Status()[1].Established; {
		if time.Now().After(deadline) {
			t.Fatalf("no keys: %+v, %+v", m[0].Status(), m[1].Status())
		}
		time.Sleep(time.Millisecond)
	}
	return m[0], m[1]
}

// killer is a stage that lets everything die as too-big.
type killer struct{}

func (killer) Name() string              { return "killer" }
func (killer) Overhead() packet.Overhead { return packet.Overhead{} }
func (killer) In(*packet.Batch)          {}
func (killer) Out(b *packet.Batch) {
	for i := range b.Packets() {
		b.Packets()[i].Drop = packet.TooBig
	}
}

// small is a queue to a path that carries nothing.
type small struct{ feed }

func (*small) Send(b *packet.Batch) error {
	killer{}.Out(b)
	return nil
}

// TestRejectSeesPlaintext: wherever a packet dies as too big, behind whichever stages, what is answered is the inner packet as the
// pod sent it.
func TestRejectSeesPlaintext(t *testing.T) {
	const vni = 7
	hop := &packet.Hop{Peer: packet.Peer{ID: 2, VNI: vni, MAC: [6]byte{2, 0, 0, 0, 0, 2}}, Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:8473"), 1418)}
	table := NewTable()
	table.Insert(netip.MustParsePrefix("10.244.2.0/24"), hop)
	table.Insert(netip.MustParsePrefix("fd00:10:244:2::/64"), hop)
	table.InsertStation(hop)
	route, bridge := NewRoute(), NewBridge()
	route.Publish(table)
	bridge.Publish(table)

	seal := map[string]packet.Stage{}
	for _, c := range []sealed.Cipher{sealed.ChaCha20Poly1305, sealed.AES128GCM, sealed.AES256GCM} {
		m, _ := keyed(t, c, 1, nil)
		seal[c.String()] = m.Stage(0)
	}
	// A peer that is permitted plaintext and has no keys: the stage lets its packets pass as they are.
	m, err := sealed.New(sealed.Config{Cipher: sealed.AES256GCM, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Update(sealed.Identity{Private: [32]byte{1}}, []sealed.Peer{{ID: 2, Name: "plain", Hop: hop, Plain: hop}}); err != nil {
		t.Fatal(err)
	}
	seal["plaintext"] = m.Stage(0)

	for name, chain := range map[string]struct {
		link   int
		stages []packet.Stage
	}{
		"vxlan":  {0, []packet.Stage{route, vxlan.New(vxlan.Config{VNI: vni, MAC: hop.Peer.MAC})}},
		"rco":    {0, []packet.Stage{route, vxlan.New(vxlan.Config{VNI: vni, MAC: hop.Peer.MAC, RCO: true})}},
		"ipudp":  {0, []packet.Stage{route, ipudp.New(1500)}},
		"frames": {packet.EthernetHeader, []packet.Stage{bridge, vxlan.New(vxlan.Config{VNI: vni, Inner: packet.Ethernet})}},
		"slow":   {0, []packet.Stage{route, Slow(vxlan.New(vxlan.Config{VNI: vni, MAC: hop.Peer.MAC}), 1)}},
	} {
		seals := map[string]packet.Stage{"bare": nil, "slow": Slow(seal["aes-256-gcm"], 1)}
		for how, s := range seal {
			seals[how] = s
		}
		for how, s := range seals {
			stages := chain.stages
			if s != nil {
				stages = append(stages[:len(stages):len(stages)], s)
			}
			for at := 1; at <= len(stages)+1; at++ { // the last: the port itself refuses them
				t.Run(fmt.Sprintf("%s/%s/%d", name, how, at), func(t *testing.T) {
					var inner [][]byte
					var batch [][]byte
					for i, ends := range [][2]string{{"10.244.1.5:1", "10.244.2.5:2"}, {"[fd00:10:244:1::5]:1", "[fd00:10:244:2::5]:2"}} {
						for _, n := range []int{0, 1, 100, 1370} {
							ip := packettest.UDP(netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1]), n, byte(i))
							inner = append(inner, ip)
							if chain.link > 0 {
								ip = packettest.Ethernet(hop.Peer.MAC, [6]byte{2, 0, 0, 0, 0, 9}, ip)
							}
							batch = append(batch, ip)
						}
					}
					all, to := stages, packet.Queue(&feed{})
					if at <= len(stages) {
						all = append(append(all[:at:at], killer{}), stages[at:]...)
					} else {
						to = &small{}
					}
					var got [][]byte
					cfg := LaneConfig{Direction: Out, Inside: End{Queue: &feed{batches: [][][]byte{batch}}}, Forward: all[0],
						Ways: []Way{{Wrap: all[1:], Outside: End{Queue: to}}}, Room: 2000, Link: chain.link, TooBig: func(ip []byte, path *packet.Path) {
							got = append(got, bytes.Clone(ip))
							if path.MTU() != hop.Path.MTU() {
								t.Errorf("mtu %d, want the hop's %d", path.MTU(), hop.Path.MTU())
							}
						}}
					if chain.link > 0 {
						cfg.Flood = bridge.Peers
					}
					l := NewLane(cfg)
					if err := l.Turn(); err != nil {
						t.Fatal(err)
					}
					if len(got) != len(inner) {
						s := l.Stats()
						d := s.Drops()
						t.Fatalf("%d packets were handed over, want %d; drops %v", len(got), len(inner), d.Map())
					}
					for i := range got {
						if !bytes.Equal(got[i], inner[i]) {
							t.Errorf("packet %d: handed over is\n%x\nwant the inner packet\n%x", i, got[i], inner[i])
						}
					}
					if at > len(stages) { // counted on their way to the port, in inner bytes
						sum := 0
						for _, b := range inner {
							sum += len(b)
						}
						if p := l.Peers()[2]; p.Bytes != uint64(sum) || p.Packets != uint64(len(inner)) {
							t.Errorf("peer 2: %+v, want %d packets of %d bytes", p, len(inner), sum)
						}
					}
				})
			}
		}
	}
}
