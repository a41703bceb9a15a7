package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/internal/nettest"
)

func TestLargest(t *testing.T) {
	for _, limit := range []int{64, 65, 700, 1399, 1400, 1449} {
		asked := 0
		got := largest(64, 1450, func(n int) bool { asked++; return n <= limit })
		if got != limit || asked > 11 {
			t.Errorf("limit %d: found %d in %d steps", limit, got, asked)
		}
	}
}

// The kernel is the other side: sizes are exact, replies are told apart, fragments are seen.
func TestEcho(t *testing.T) {
	nettest.RequireRoot(t)
	near, far := nettest.New(t), nettest.New(t)
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	if err := nettest.Join(nettest.End{NS: near, Dev: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}},
		nettest.End{NS: far, Dev: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)}}, 1500); err != nil {
		t.Fatal(err)
	}
	ask := func(to netip.Addr, length int) (r echoReply, err error) {
		near.Do(func() { r, err = echo(t.Context(), to, length, 3, echoWait) })
		return r, err
	}
	for _, to := range []netip.Addr{v4, v6} {
		for _, length := range []int{smallEcho, 777, 1500} {
			if r, err := ask(to, length); err != nil || r.fragment != 0 || r.took <= 0 {
				t.Errorf("%v, %d bytes: %+v, %v", to, length, r, err)
			}
		}
		if _, err := ask(to, 1501); err == nil || errors.Is(err, errSilent) {
			t.Errorf("%v, more than the device takes: %v", to, err)
		}
	}
	// The far route is narrower: requests arrive whole, and the replies in pieces.
	far.MustRun(t, "ip", "route", "replace", "192.0.2.1", "dev", "eth0", "mtu", "lock", "1400")
	far.MustRun(t, "ip", "-6", "route", "replace", "2001:db8::1", "dev", "eth0", "mtu", "lock", "1400")
	for _, to := range []netip.Addr{v4, v6} {
		if r, err := ask(to, 1500); err != nil || r.fragment > 1400 || r.fragment < 1380 {
			t.Errorf("%v over a narrower way back: %+v, %v", to, r, err)
		}
	}
	// The far device is narrower: what is larger is lost.
	far.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1300")
	if _, err := ask(v4, 1301+14); !errors.Is(err, errSilent) { // the link itself may take a header more
		t.Errorf("more than the far device takes: %v", err)
	}
	if _, err := ask(v4, 1300); err != nil {
		t.Errorf("as much as the far device takes: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	near.Do(func() {
		if _, err := echo(ended, v4, smallEcho, 3, time.Hour); err == nil {
			t.Error("it did not end with its context")
		}
	})
}

func TestRefuses(t *testing.T) {
	nettest.RequireRoot(t)
	ns := nettest.New(t)
	ns.Do(func() {
		l, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Error(err)
			return
		}
		at := l.LocalAddr().(*net.UDPAddr).AddrPort()
		if refuses(t.Context(), at, 50*time.Millisecond) {
			t.Error("an open port refuses")
		}
		l.Close()
		if !refuses(t.Context(), at, echoWait) {
			t.Error("a closed port does not refuse")
		}
	})
}

func TestPeersWithoutAny(t *testing.T) {
	if f := peers(t.Context(), api.Status{}, nil, nil); len(f) != 1 || f[0].Level != OK {
		t.Errorf("%+v", f)
	}
	if f := peers(t.Context(), api.Status{}, nil, errors.New("x")); len(f) != 1 || f[0].Level != Wrong {
		t.Errorf("%+v", f)
	}
	six := api.Peer{Node: "b", Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}
	s := api.Status{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}
	if f := peers(t.Context(), s, []api.Peer{six}, nil); len(f) != 1 || f[0].Level != Note || !strings.Contains(f[0].Found, "no prefix of an IP version") {
		t.Errorf("%+v", f)
	}
}
