package txloss

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// waitLong ends a wait for something that takes a fraction of it, however busy the machine.
const waitLong = nettest.Patience

// sender is a namespace that a Watch counts in, with a socket towards a neighbour.
type sender struct {
	t         *testing.T
	near, far *nettest.NS
	w         *Watch
	conn      net.PacketConn
}

func newSender(t *testing.T, near, far string) *sender {
	t.Helper()
	s := &sender{t: t, near: nettest.New(t), far: nettest.New(t)}
	nettest.Pair(t, nettest.End{NS: s.near, Dev: "eth0", Addrs: nettest.Prefixes(near)}, nettest.End{NS: s.far, Dev: "eth0", Addrs: nettest.Prefixes(far)}, 1500)
	var err error
	s.near.Do(func() {
		if s.w, err = New(); err == nil {
			s.conn, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParsePrefix(near).Addr(), 0).String())
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close(); s.w.Close() })
	return s
}

// send sends n datagrams of 1000 bytes to a neighbour, and fails the test where the kernel does not take one.
func (s *sender) send(n int, to string) {
	s.t.Helper()
	for range n {
		if _, err := s.conn.WriteTo(make([]byte, 1000), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 9))); err != nil {
			s.t.Fatal(err)
		}
	}
}

// told says whether full queues can be seen: they are told of in the machine's own network namespace only, and process 1 may be in
// another one.
func (s *sender) told() bool { return len(s.w.queues) > 0 }

func (s *sender) lost() map[string]uint64 {
	s.t.Helper()
	lost, err := s.w.Since([]string{"eth0"})
	if err != nil {
		s.t.Fatal(err)
	}
	return lost
}

// TestNeighbour: packets to a neighbour that does not answer die after the kernel has taken them, and it tells so.
func TestNeighbour(t *testing.T) {
	for name, c := range map[string][3]string{
		"IPv4": {"192.0.2.1/24", "192.0.2.2/24", "192.0.2.99"},
		"IPv6": {"2001:db8::1/64", "2001:db8::2/64", "2001:db8::99"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSender(t, c[0], c[1])
			// What waits at a time is bounded by net.*.neigh.*.unres_qlen_bytes: some 100 packets.
			const sent, waiting = 2000, 400
			s.send(sent, c[2])
			if lost := s.lost()["machine neighbour-queue-full"]; lost < sent-waiting && s.told() {
				t.Errorf("%d of %d packets to nobody are told of: %v", lost, sent, s.lost())
			}
			nettest.Eventually(t, waitLong, func() error {
				if lost := s.lost(); lost["machine neighbour-failed"] == 0 {
					return fmt.Errorf("no neighbour is told of: %v", lost)
				}
				return nil
			})
		})
	}
}

// TestLinkWithoutCarrier: the same where the neighbour's link is down, and is up again.
func TestLinkWithoutCarrier(t *testing.T) {
	s := newSender(t, "192.0.2.1/24", "192.0.2.2/24")
	s.send(10, "192.0.2.2") // its address is known
	s.far.MustRun(t, "ip", "link", "set", "eth0", "down")
	nettest.Eventually(t, waitLong, func() error { // the kernel takes its time to forget the address
		s.send(100, "192.0.2.2")
		if lost := s.lost(); lost["machine neighbour-queue-full"] == 0 && s.told() {
			return fmt.Errorf("%v", lost)
		}
		return nil
	})
	s.far.MustRun(t, "ip", "link", "set", "eth0", "up")
}

// TestDevice: what a device's queueing discipline drops is told of under the device's name; other devices are not.
func TestDevice(t *testing.T) {
	nettest.RequireTool(t, "tc")
	s := newSender(t, "192.0.2.1/24", "192.0.2.2/24")
	s.near.MustRun(t, "ip", "link", "add", "other", "type", "veth", "peer", "name", "other2")
	for _, dev := range []string{"other", "other2"} {
		s.near.MustRun(t, "ip", "link", "set", dev, "up")
	}
	s.near.MustRun(t, "ip", "addr", "add", "198.51.100.1/24", "dev", "other")
	// Nothing waits for an address, also where answers are late: every packet comes to the queueing discipline.
	mac := strings.Fields(s.far.MustRun(t, "ip", "-br", "link", "show", "dev", "eth0"))[2]
	s.near.MustRun(t, "ip", "neigh", "replace", "192.0.2.2", "lladdr", mac, "dev", "eth0", "nud", "permanent")
	s.send(10, "192.0.2.2")
	for name := range s.lost() {
		if strings.HasSuffix(name, "queue-dropped") {
			t.Errorf("%s is told of and did not happen", name)
		}
	}
	for _, dev := range []string{"eth0", "other"} { // no room at all
		s.near.MustRun(t, "tc", "qdisc", "replace", "dev", dev, "root", "pfifo", "limit", "0")
	}
	s.send(50, "192.0.2.2")
	s.send(50, "198.51.100.2")
	lost := s.lost()
	if n := lost["eth0 queue-dropped"]; n < 50 {
		t.Errorf("%d of 50 packets are told of: %v", n, lost)
	}
	for name := range lost {
		if strings.HasPrefix(name, "other ") {
			t.Errorf("%s is told of, and the device holds none of the addresses", name)
		}
	}
}

// TestCountersBeginAnew: a device that came later counts from nothing, and one whose counters began anew does not wrap.
func TestCountersBeginAnew(t *testing.T) {
	for _, c := range [][3]uint64{{5, 3, 2}, {3, 3, 0}, {2, 3, 2}, {7, 0, 7}} {
		if got := since(c[0], c[1]); got != c[2] {
			t.Errorf("since(%d, %d) = %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

// TestTablesAreTheKernels: what netlink tells of failures is what /proc has, where it has it.
func TestTablesAreTheKernels(t *testing.T) {
	s := newSender(t, "192.0.2.1/24", "192.0.2.2/24")
	nettest.Eventually(t, waitLong, func() error { // between two looks others may fail
		var proc uint64
		for _, f := range s.w.queues {
			text, err := os.ReadFile(f.Name())
			if err != nil {
				return err
			}
			n, err := sumColumn(text, "res_failed")
			if err != nil {
				return err
			}
			proc += n
		}
		tables, err := s.w.countTables()
		if err == nil && tables.failed != proc && s.told() {
			err = fmt.Errorf("netlink says %d, /proc %d", tables.failed, proc)
		}
		return err
	})
}

func TestSumColumn(t *testing.T) {
	const head = "entries  res_failed unresolved_discards table_fulls\n"
	for text, want := range map[string]uint64{
		head: 0,
		head + "00000001 00000002 0000000a 0\n00000001 00000002 00000010 0\n": 26,
	} {
		if n, err := sumColumn([]byte(text), "unresolved_discards"); n != want || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "entries\n1\n", head + "1 2\n", head + "1 2 x 3\n"} {
		if n, err := sumColumn([]byte(text), "unresolved_discards"); err == nil {
			t.Errorf("%q: %d and no error", text, n)
		}
	}
}

func FuzzSumColumn(f *testing.F) {
	f.Add([]byte("entries unresolved_discards\n1 2\n"))
	f.Fuzz(func(_ *testing.T, text []byte) { sumColumn(text, "unresolved_discards") })
}

func FuzzTableStats(f *testing.F) {
	stats := make([]byte, 8*11)
	binary.NativeEndian.PutUint64(stats[8*statFailed:], 7)
	message := []byte{0, 0, 0, 0}
	for typ, value := range map[uint16][]byte{attrName: []byte("arp_cache\x00"), attrStats: stats} {
		attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		attr = append(binary.NativeEndian.AppendUint16(attr, typ), value...)
		for len(attr)%4 != 0 {
			attr = append(attr, 0)
		}
		message = append(message, attr...)
	}
	if n, _, err := tableStats(message); n != 7 || err != nil {
		f.Errorf("%d, %v", n, err)
	}
	f.Add(message)
	f.Fuzz(func(_ *testing.T, b []byte) { tableStats(b) })
}

// TestConnectionTracking: a packet whose flow is translated to addresses and ports that another flow has is lost, and counted.
func TestConnectionTracking(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "nft")
	s := newSender(t, "192.0.2.1/24", "192.0.2.2/24")
	s.far.MustRun(t, "nft", "add table ip t; add chain ip t in { type filter hook input priority 0; policy drop; }")
	s.near.MustRun(t, "nft", "add table ip t; add chain ip t out { type nat hook postrouting priority 100; }; add rule ip t out tcp dport 9 snat to 192.0.2.1:7")
	for range 2 {
		var err error
		s.near.Do(func() { _, err = net.DialTimeout("tcp", "192.0.2.2:9", 100*time.Millisecond) })
		if err == nil {
			t.Fatal("somebody answered")
		}
	}
	if lost := s.lost(); lost["conntrack insert-failed"] == 0 {
		t.Errorf("lost: %v", lost)
	}
}
