package probe

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// damager stands between two hosts, changes every so many packets of the tests' data and gives them right checksums again, as a faulty
// overlay does.
type damager struct {
	sync.Mutex
	kinds  []kind
	every  uint64 // 0 = none
	seen   uint64
	before map[int][]byte // by length

	packets, bytes uint64 // changed
}

// begin makes it change packets in these ways from now on.
func (d *damager) begin(kinds []kind, every uint64) {
	d.Lock()
	defer d.Unlock()
	d.kinds, d.every, d.seen, d.packets, d.bytes = kinds, every, 0, 0, 0
}

// changed is how many packets and bytes it has changed since.
func (d *damager) changed() (packets, bytes uint64) {
	d.Lock()
	defer d.Unlock()
	return d.packets, d.bytes
}

// kind changes a payload in place; before is one of the same length that passed earlier. It returns a shorter length where it cuts.
type kind func(payload, before []byte) int

var (
	flip  kind = func(p, _ []byte) int { p[len(p)/2] ^= 0x10; return len(p) }
	first kind = func(p, _ []byte) int { p[0] ^= 0x01; return len(p) }
	shift kind = func(p, _ []byte) int { copy(p[1:], p[:len(p)-1]); return len(p) }
	swap  kind = func(p, _ []byte) int {
		half := append([]byte(nil), p[:len(p)/2]...)
		copy(p, p[len(p)-len(half):])
		copy(p[len(p)-len(half):], half)
		return len(p)
	}
	stale kind = func(p, b []byte) int { // under a header of now
		head := min(probeHeader, len(p)/2)
		copy(p[head:], b[head:])
		return len(p)
	}
	zeroes  kind = func(p, _ []byte) int { clear(p[len(p)/3:]); return len(p) }
	foreign kind = func(p, _ []byte) int {
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		return len(p)
	}
	cut kind = func(p, _ []byte) int { return len(p) - 1 }
)

// pass changes a frame, or not, and returns what goes on.
func (d *damager) pass(frame []byte) []byte {
	d.Lock()
	defer d.Unlock()
	const ethernet = 14
	ip := frame[ethernet:]
	l4, proto := 0, byte(0)
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		l4, proto = int(ip[0]&15)*4, ip[9]
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return frame // a fragment: its checksum is in another
		}
		ip = ip[:binary.BigEndian.Uint16(ip[2:])] // without padding
	case unix.ETH_P_IPV6:
		l4, proto = 40, ip[6]
	}
	head := l4 + udpHeader
	switch {
	case proto == unix.IPPROTO_TCP:
		head = l4 + int(ip[l4+12]>>4)*4
	case proto != unix.IPPROTO_UDP:
		return frame
	}
	payload := ip[head:]
	ports := ip[l4:]
	if len(payload) == 0 || binary.BigEndian.Uint16(ports) == DefaultPort || binary.BigEndian.Uint16(ports[2:]) == DefaultPort {
		return frame // control
	}
	earlier := d.before[len(payload)]
	d.before[len(payload)] = append([]byte(nil), payload...)
	if d.seen++; d.every == 0 || d.seen%d.every != 0 {
		return frame
	}
	if earlier == nil {
		earlier = make([]byte, len(payload))
	}
	was := append([]byte(nil), payload...)
	n := d.kinds[d.packets%uint64(len(d.kinds))](payload, earlier)
	changed := len(payload) - n
	for i := range n {
		if was[i] != payload[i] {
			changed++
		}
	}
	d.packets++
	d.bytes += uint64(changed)
	ip = ip[:head+n]
	finish(ip, l4, proto)
	return frame[:ethernet+len(ip)]
}

// finish writes lengths and checksums (RFC 791, 768, 9293, 8200).
func finish(ip []byte, l4 int, proto byte) {
	segment := ip[l4:]
	at := 16
	if proto == unix.IPPROTO_UDP {
		at = 6
		binary.BigEndian.PutUint16(segment[4:], uint16(len(segment)))
	}
	addresses := ip[8:40]
	if ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^folded(ip[:l4], 0))
		addresses = ip[12:20]
	} else {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(segment)))
	}
	binary.BigEndian.PutUint16(segment[at:], 0)
	sum := ^folded(segment, uint32(folded(addresses, uint32(proto)+uint32(len(segment)))))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(segment[at:], sum)
}

// folded is the ones' complement sum of b and from (RFC 1071).
func folded(b []byte, from uint32) uint16 {
	sum := uint64(from)
	for ; len(b) > 1; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// tap is a raw socket at a device.
func tap(t *testing.T, ns *nettest.NS, dev string) socket {
	t.Helper()
	l, err := ns.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	ns.Do(func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	s := socket(fd)
	t.Cleanup(s.close)
	for _, o := range [][3]int{
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1}, {unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64 << 20},
	} {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return s
}

// newDamagedHosts is newHosts with somebody in between.
func newDamagedHosts(t *testing.T) (*hosts, *damager) {
	nettest.RequireTool(t, "ethtool")
	h := &hosts{
		near: nettest.New(t), far: nettest.New(t),
		v4: netip.MustParseAddrPort("192.0.2.2:8479"), v6: netip.MustParseAddrPort("[2001:db8::2]:8479"),
	}
	between := nettest.New(t)
	nettest.Pair(t,
		nettest.End{NS: h.near, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: between, Dev: "near"}, 1500)
	nettest.Pair(t,
		nettest.End{NS: h.far, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")},
		nettest.End{NS: between, Dev: "far"}, 1500)
	for _, ns := range []*nettest.NS{h.near, h.far} { // packets as they are on a wire
		ns.MustRun(t, "ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off", "gro", "off")
	}
	h.serve(t)
	d := &damager{before: map[int][]byte{}}
	ends := [2]socket{tap(t, between, "near"), tap(t, between, "far")}
	var stop atomic.Bool
	var waits []func()
	for i, from := range ends {
		waits = append(waits, background(func() {
			frame := make([]byte, 2048)
			for !stop.Load() {
				n, err := unix.Read(int(from), frame)
				if err != nil {
					continue
				}
				_, _ = unix.Write(int(ends[1-i]), d.pass(frame[:n])) // a full queue is a loss like any other
			}
		}))
	}
	t.Cleanup(func() {
		stop.Store(true)
		for _, wait := range waits {
			wait()
		}
	})
	return h, d
}

// TestDamageIsFound: what a path changes is found, to the byte, by the end that receives it, as corrupt and never as loss, whatever it is, over both
// protocols and families; and a path that changes nothing is found right.
func TestDamageIsFound(t *testing.T) {
	h, d := newDamagedHosts(t)
	for _, c := range []struct {
		test  string
		kinds []kind
	}{
		{"udp-stream:size=1200:rate=2e7", []kind{flip, first, shift, swap, stale, zeroes, foreign, cut}},
		{"udp-stream:size=64:rate=1e6", []kind{flip, first, foreign, cut}}, // over IPv6 there is nothing but the header
		{"udp-rr:size=600", []kind{flip, first, shift, swap, stale, zeroes, foreign, cut}},
		{"udp-open-rr:size=600:rate=2000", []kind{flip, first, shift, swap, stale, zeroes, foreign, cut}},
		{"tcp-stream", []kind{flip, first, shift, swap, stale, zeroes, foreign}},
		{"cpu-fixed:rate=5e7", []kind{flip, first, shift, swap, stale, zeroes, foreign}},
		{"tcp-rr:size=600", []kind{flip, first, shift, swap, stale, zeroes, foreign}},
		{"tcp-crr", []kind{flip}},
	} {
		for _, target := range []netip.AddrPort{h.v4, h.v6} {
			for _, every := range []uint64{0, 23} {
				t.Run(fmt.Sprintf("%s to %s, every %d", c.test, target.Addr(), every), func(t *testing.T) {
					s, err := Parse(c.test)
					if err != nil {
						t.Fatal(err)
					}
					d.begin(c.kinds, every)
					r, err := h.run(Spec{Test: s.Test, Params: s.Params, Target: target, Duration: 150 * time.Millisecond})
					if err != nil {
						t.Fatal(err)
					}
					packets, bytes := d.changed()
					if (packets > 0) != (every > 0) || r.Verified < r.Bytes {
						t.Fatalf("%d packets changed; %+v", packets, r)
					}
					if (r.Corrupt > 0) != (packets > 0) || len(r.Damage) > 2*maxDamage || (len(r.Damage) > 0) != (packets > 0) {
						t.Errorf("%d bytes in %d packets changed, corrupt: %+v", bytes, packets, r.Integrity)
					}
					if strings.HasPrefix(c.test, "udp") {
						if lost := r.Generated - r.Delivered - r.CorruptPackets; lost != r.KernelDrops[socketOverflow] || r.CorruptPackets > packets || r.CorruptPackets+r.KernelDrops[socketOverflow] < packets {
							t.Errorf("%d packets changed; %d generated, %d delivered, %d corrupt, drops %v", packets, r.Generated, r.Delivered, r.CorruptPackets, r.KernelDrops)
						}
						if loss, _ := r.Metric("loss"); loss > 0 && r.KernelDrops[socketOverflow] == 0 {
							t.Errorf("corrupt packets are a loss of %v", loss)
						}
						return
					}
					// A segment that is sent again may be dropped by the receiver, changed or not.
					if r.Corrupt > bytes || r.Retransmits == 0 && r.Corrupt != bytes {
						t.Errorf("%d bytes changed, %d found, %d segments sent again", bytes, r.Corrupt, r.Retransmits)
					}
				})
			}
		}
	}
}

// TestMixedFindsDamage: of every shape, over both families.
func TestMixedFindsDamage(t *testing.T) {
	t.Parallel()
	h, d := newDamagedHosts(t)
	for _, every := range []uint64{0, 97} {
		d.begin([]kind{flip, shift, swap, stale, zeroes, foreign}, every)
		r, err := h.run(Spec{Test: "mixed", Params: Params{"rate": 4e7}, Duration: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		packets, _ := d.changed()
		if r.Corrupt == 0 != (every == 0) || r.CorruptPackets > packets || len(r.Damage) == 0 != (every == 0) {
			t.Errorf("%d packets changed: %+v", packets, r.Integrity)
		}
		if loss, _ := r.Metric("loss"); loss > 0 {
			t.Errorf("corrupt packets are a loss of %v: %+v", loss, r.Shapes)
		}
		for _, f := range r.Shapes {
			switch {
			case f.Name == unknownShape: // damaged headers
			case f.Verified == 0 || f.Received == 0:
				t.Errorf("nothing was verified of %s over IPv%d", f.Name, f.Family)
			case !strings.HasPrefix(f.Name, "bulk") && f.Name != "udp-segment": // few packets, or little but headers
			case f.Corrupt == 0 != (every == 0):
				t.Errorf("%+v", f)
			}
		}
		if every > 0 {
			t.Log(packets, r.Damage)
		}
	}
}

// TestAllDamaged: where nothing comes as it was sent, that is what is said, and not that nothing comes.
func TestAllDamaged(t *testing.T) {
	t.Parallel()
	h, d := newDamagedHosts(t)
	d.begin([]kind{first}, 1)
	for _, test := range []string{"udp-rr", "udp-stream"} {
		_, err := h.run(Spec{Test: test, Duration: 50 * time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), "none was as it was sent") {
			t.Errorf("%s: %v", test, err)
		}
	}
}
