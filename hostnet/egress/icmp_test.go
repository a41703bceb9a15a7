package egress

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"weft/control"
	"weft/internal/nettest"
	"weft/internal/sock"
)

// message4 is what a raw socket gives of a router's "fragmentation needed" for a UDP packet.
func message4(from, to netip.AddrPort, mtu uint16) []byte {
	b := make([]byte, 20+8+20+8)
	b[0], b[9] = 0x45, 1
	b[20], b[21] = 3, 4
	binary.BigEndian.PutUint16(b[26:], mtu)
	quoted := b[28:]
	quoted[0], quoted[6], quoted[9] = 0x45, 0x40, 17
	binary.BigEndian.PutUint16(quoted[2:], 1500)
	binary.BigEndian.PutUint16(quoted[24:], 1480)
	copy(quoted[12:], from.Addr().AsSlice())
	copy(quoted[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(quoted[20:], from.Port())
	binary.BigEndian.PutUint16(quoted[22:], to.Port())
	return b
}

func message6(from, to netip.AddrPort, mtu uint32) []byte {
	b := make([]byte, 8+40+8)
	b[0] = 2
	binary.BigEndian.PutUint32(b[4:], mtu)
	b[8], b[14] = 0x60, 17
	binary.BigEndian.PutUint16(b[8+4:], 1460)
	binary.BigEndian.PutUint16(b[8+44:], 1460)
	copy(b[8+8:], from.Addr().AsSlice())
	copy(b[8+24:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[8+40:], from.Port())
	binary.BigEndian.PutUint16(b[8+42:], to.Port())
	return b
}

func TestTooBig(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.2:4789"), netip.MustParseAddrPort("[2001:db8::2]:4789")
	own := map[bool]netip.AddrPort{true: netip.MustParseAddrPort("192.0.2.1:50000"), false: netip.MustParseAddrPort("[2001:db8::1]:50000")}
	edited := func(b []byte, at int, to byte) []byte { b[at] = to; return b }
	for name, c := range map[string]struct {
		in  []byte
		v4  bool
		to  netip.AddrPort
		mtu int // 0 = it is not one
	}{
		"v4":                        {message4(own[true], v4, 1400), true, v4, 1400},
		"v6":                        {message6(own[false], v6, 1400), false, v6, 1400},
		"less than any path":        {message4(own[true], v4, 68), true, v4, 0},
		"an old router's":           {message4(own[true], v4, 0), true, v4, 0},
		"less than IPv6 has":        {message6(own[false], v6, 1279), false, v6, 0},
		"port unreachable":          {edited(message4(own[true], v4, 1400), 21, 3), true, v4, 0},
		"about TCP":                 {edited(message4(own[true], v4, 1400), 28+9, 6), true, v4, 0},
		"a header beyond the end":   {edited(message4(own[true], v4, 1400), 28, 0x4f), true, v4, 0},
		"about a part":              {edited(message4(own[true], v4, 1400), 28+7, 1), true, v4, 0},
		"about what may be cut":     {edited(message4(own[true], v4, 1400), 28+6, 0), true, v4, 0},
		"about lengths that differ": {edited(message4(own[true], v4, 1400), 28+25, 0), true, v4, 0},
		"the same, v6":              {edited(message6(own[false], v6, 1400), 8+45, 0), false, v6, 0},
		"cut":                       {message4(own[true], v4, 1400)[:50], true, v4, 0},
		"nothing":                   {nil, true, v4, 0},
		"nothing, v6":               {nil, false, v6, 0},
	} {
		m, ok := tooBig(c.in, c.v4)
		if ok != (c.mtu > 0) || ok && m != (message{own[c.v4], c.to, 1500, c.mtu}) {
			t.Errorf("%s: %+v %v", name, m, ok)
		}
	}
}

func FuzzTooBig(f *testing.F) {
	f.Add(message4(netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("192.0.2.2:4789"), 1400), true)
	f.Add(message6(netip.MustParseAddrPort("[2001:db8::1]:50000"), netip.MustParseAddrPort("[2001:db8::2]:4789"), 1400), false)
	f.Fuzz(func(t *testing.T, b []byte, v4 bool) {
		if m, ok := tooBig(b, v4); ok && (m.mtu < least4 || m.to.Addr().Is4() != v4 || m.from.Addr().Is4() != v4) {
			t.Errorf("%+v", m)
		}
	})
}

// TestLimit: what was heard counts for the path it was said of, and for a while.
func TestLimit(t *testing.T) {
	to, now := netip.MustParseAddr("192.0.2.2"), time.Now()
	e := newICMPListener(nil)
	path := func(dev string, mtu int, at time.Duration) int {
		p := Path{Device: dev, MTU: mtu}
		e.limit(to, &p, now.Add(at))
		if p.Heard != 0 {
			return p.Heard
		}
		return p.MTU
	}
	hear := func() { e.heard[to] = word{mtu: 1400, until: now.Add(believed)} }
	for i, c := range []struct {
		hear bool
		dev  string
		mtu  int
		at   time.Duration
		want int
	}{
		{false, "eth0", 1500, 0, 1500}, {true, "eth0", 1500, 0, 1400}, {false, "eth0", 1500, time.Second, 1400},
		{false, "eth1", 1500, time.Second, 1500}, // by another device
		{false, "eth0", 1500, time.Second, 1500}, // and back: it would be said again
		{true, "eth0", 1500, 0, 1400}, {false, "eth0", 9000, 0, 9000},
		{true, "eth0", 1500, 0, 1400}, {false, "eth0", 1500, believed + time.Second, 1500}, {false, "eth0", 1500, 0, 1500},
		{true, "eth0", 1300, 0, 1300},
	} {
		if c.hear {
			hear()
		}
		if got := path(c.dev, c.mtu, c.at); got != c.want {
			t.Errorf("step %d: %d, want %d", i, got, c.want)
		}
	}
}

// TestHear: what counts is a word about a packet that we may have sent, of which less is said than is known.
func TestHear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		own, to := netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("192.0.2.2:4789")
		other := netip.MustParseAddr("198.51.100.9")
		e := newICMPListener([]uint16{4789})
		defer e.Close()
		e.sends = func(a netip.AddrPort) bool { return a == own || a == netip.AddrPortFrom(other, own.Port()) }
		e.inside = func(index int) bool { return index == 7 }
		e.limit(to.Addr(), &Path{Source: own.Addr(), Device: "eth0", MTU: 1500}, time.Now())
		said := message{own, to, 1500, 1400}
		edit := func(change func(*message)) message { m := said; change(&m); return m }
		for _, c := range []struct {
			name string
			m    message
			by   int
			told bool
		}{
			{"to another port", edit(func(m *message) { m.to = netip.AddrPortFrom(to.Addr(), 53) }), 0, false},
			{"to an endpoint that nobody asked for", edit(func(m *message) { m.to = netip.AddrPortFrom(other, 4789) }), 0, false},
			{"from a port that nobody sends from", edit(func(m *message) { m.from = netip.AddrPortFrom(own.Addr(), 50001) }), 0, false},
			{"from an address that is not the path's", edit(func(m *message) { m.from = netip.AddrPortFrom(other, own.Port()) }), 0, false},
			{"as much as the path carries", edit(func(m *message) { m.mtu = 1500 }), 0, false},
			{"about a packet that fits", edit(func(m *message) { m.length = 1400 }), 0, false},
			{"from a pod", said, 7, false},
			{"from a router", said, 2, true},
			{"the same once more", said, 2, false},
			{"more", edit(func(m *message) { m.mtu = 1450 }), 2, false},
			{"less", edit(func(m *message) { m.mtu = 1300 }), 2, true},
		} {
			e.hear(c.m, c.by)
			time.Sleep(lookAgain)
			synctest.Wait()
			told := false
			select {
			case <-e.News():
				told = true
				<-e.told
			default:
			}
			if told != c.told {
				t.Errorf("%s: told %v", c.name, told)
			}
		}
		// A flood: one token a pause, the last after the last word; and made-up addresses change nothing of what is known.
		tokens, start := 0, time.Now()
		for i := range 700 {
			e.hear(edit(func(m *message) { m.mtu = 1299 - i }), 2)
			e.hear(edit(func(m *message) {
				m.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 4789)
			}), 2)
			time.Sleep(time.Millisecond)
			synctest.Wait()
			select {
			case <-e.News():
				tokens++
			default:
			}
		}
		time.Sleep(lookAgain)
		synctest.Wait()
		select {
		case <-e.News():
			tokens++
		default:
			t.Error("nobody looks at the last word")
		}
		if most := 1 + int(time.Since(start)/lookAgain); tokens > most {
			t.Errorf("%d tokens, want at most %d", tokens, most)
		}
		if len(e.heard) != 1 || e.heard[to.Addr()].mtu != 600 {
			t.Errorf("heard: %+v", e.heard)
		}
		e.keep(nil, time.Second) // the peer has left
		if len(e.heard)+len(e.asked) != 0 {
			t.Errorf("kept of a peer that left: %+v", e.heard)
		}
	})
}

// TestListen: of two such messages for a port that a socket sends from, that from outside counts, and that by a device of the overlay's does not.
func TestListen(t *testing.T) {
	here, there := nettest.New(t), nettest.New(t)
	for i, dev := range []string{"weft0", "eth0"} {
		nettest.Pair(t, nettest.End{NS: here, Dev: dev, Addrs: nettest.Prefixes([]string{"10.0.0.1/24", "192.0.2.1/24"}[i], []string{"fd00::1/64", "2001:db8::1/64"}[i])},
			nettest.End{NS: there, Dev: dev, Addrs: nettest.Prefixes([]string{"10.0.0.2/24", "192.0.2.254/24"}[i], []string{"fd00::2/64", "2001:db8::254/64"}[i])}, 1500)
	}
	for i, c := range []struct{ own, to, inside string }{{"192.0.2.1", "198.51.100.2", "10.0.0.1"}, {"2001:db8::1", "2001:db8:1::2", "fd00::1"}} {
		var e *ICMPListener
		var s *sock.Socket
		var err error
		here.Do(func() {
			if e, err = Listen(4789); err == nil {
				s, err = sock.Source(netip.MustParseAddr(c.own))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		to := netip.MustParseAddr(c.to)
		e.limit(to, &Path{Source: netip.MustParseAddr(c.own), Device: "eth0", MTU: 1500}, time.Now())
		send := func(at string, mtu uint16) {
			t.Helper()
			var err error
			there.Do(func() {
				family, protocol, b := unix.AF_INET, unix.IPPROTO_ICMP, message4(s.Bound(), netip.AddrPortFrom(to, 4789), mtu)[20:]
				if i == 1 {
					family, protocol, b = unix.AF_INET6, unix.IPPROTO_ICMPV6, message6(s.Bound(), netip.AddrPortFrom(to, 4789), uint32(mtu))
				}
				var fd int
				if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err == nil {
					defer unix.Close(fd)
					binary.BigEndian.PutUint16(b[2:], checksum(b)) // that of ICMPv6 the kernel makes
					err = unix.Sendto(fd, b, 0, sock.Sockaddr(netip.AddrPortFrom(netip.MustParseAddr(at), 0)))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		send(c.inside, 1300)
		send(c.own, 1400)
		select {
		case <-e.News():
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nothing was heard", c.own)
		}
		p := Path{Source: netip.MustParseAddr(c.own), Device: "eth0", MTU: 1500}
		if e.limit(to, &p, time.Now()); p.Heard != 1400 {
			t.Errorf("%s: heard %d, want 1400", c.own, p.Heard)
		}
		e.Close()
		if err := s.Close(); err != nil || sock.Sends(s.Bound()) {
			t.Errorf("a closed socket sends: %v", err)
		}
	}
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		if i != 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

// TestInner: a word narrows a path as far as the network's families allow, and what is narrower has a name.
func TestInner(t *testing.T) {
	to := netip.MustParseAddr("192.0.2.2")
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/48")
	for _, c := range []struct {
		mtu, heard int
		network    []netip.Prefix
		want       int
		narrow     bool
	}{
		{1500, 0, []netip.Prefix{v4, v6}, 1450, false},
		{1500, 1400, []netip.Prefix{v4, v6}, 1350, false},
		{1500, 1330, []netip.Prefix{v4, v6}, 1280, false},
		{1500, 1329, []netip.Prefix{v4, v6}, 1280, true},
		{1500, 1329, []netip.Prefix{v4}, 1279, false},
		{1500, 560, []netip.Prefix{v4}, 576, true},
		{1300, 0, []netip.Prefix{v4, v6}, 1250, true}, // the kernel's own word: it sends no more
		{1300, 1290, []netip.Prefix{v4, v6}, 1250, true},
	} {
		u := &Underlay{Device: "eth0", MTU: 1500, Paths: map[netip.Addr]Path{to: {Device: "eth0", MTU: c.mtu, Heard: c.heard}}}
		if got, narrow := u.Inner(to, 1450, c.network), u.Narrow(to, 1450, c.network); got != c.want || (narrow != "") != c.narrow {
			t.Errorf("%+v: %d %q", c, got, narrow)
		}
	}
}

// TestFinderHears: a word is another revision, and forgotten with the path.
func TestFinderHears(t *testing.T) {
	m, e := two(), newICMPListener([]uint16{4789})
	f := NewFinder(m, Choice{})
	f.Hear(e)
	own, to := netip.MustParseAddrPort("192.0.2.1:50000"), netip.MustParseAddrPort("203.0.113.3:4789")
	e.sends, e.inside = func(a netip.AddrPort) bool { return a == own }, func(int) bool { return false }
	heard := func(revision uint64, want int) {
		t.Helper()
		u, err := f.Derive(node("self", "192.0.2.1"), []control.Node{node("b", "203.0.113.3")})
		if err != nil {
			t.Fatal(err)
		}
		if p, _ := u.To(to.Addr()); u.Revision != revision || p.Heard != want || p.MTU > 1420 {
			t.Fatalf("revision %d, %+v; want %d, %d", u.Revision, p, revision, want)
		}
	}
	heard(0, 0)
	e.hear(message{own, to, 1400, 1300}, 2)
	<-e.News()
	heard(1, 1300)
	m.devices[3].MTU = 1410
	heard(2, 0)
	e.Close()
}
