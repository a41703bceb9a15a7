package echo

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"weft/internal/nettest"
)

func TestLargest(t *testing.T) {
	for _, limit := range []int{64, 65, 700, 1399, 1400, 1449} {
		asked := 0
		got := Largest(64, 1450, func(n int) bool { asked++; return n <= limit })
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
	ask := func(to netip.Addr, length int) (r Reply, err error) {
		near.Do(func() { r, err = Ask(t.Context(), to, length, 3, time.Second/2) })
		return r, err
	}
	for _, to := range []netip.Addr{v4, v6} {
		for _, length := range []int{64, 777, 1500} {
			if r, err := ask(to, length); err != nil || r.Fragment != 0 || r.Took <= 0 {
				t.Errorf("%v, %d bytes: %+v, %v", to, length, r, err)
			}
		}
		if _, err := ask(to, 1501); err == nil || errors.Is(err, ErrSilent) {
			t.Errorf("%v, more than the device takes: %v", to, err)
		}
	}
	// The far route is narrower: requests arrive whole, and the replies in pieces.
	far.MustRun(t, "ip", "route", "replace", "192.0.2.1", "dev", "eth0", "mtu", "lock", "1400")
	far.MustRun(t, "ip", "-6", "route", "replace", "2001:db8::1", "dev", "eth0", "mtu", "lock", "1400")
	for _, to := range []netip.Addr{v4, v6} {
		if r, err := ask(to, 1500); err != nil || r.Fragment > 1400 || r.Fragment < 1380 {
			t.Errorf("%v over a narrower way back: %+v, %v", to, r, err)
		}
	}
	// The far device is narrower: what is larger is lost.
	far.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1300")
	if _, err := ask(v4, 1301+14); !errors.Is(err, ErrSilent) { // the link itself may take a header more
		t.Errorf("more than the far device takes: %v", err)
	}
	if _, err := ask(v4, 1300); err != nil {
		t.Errorf("as much as the far device takes: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	near.Do(func() {
		if _, err := Ask(ended, v4, 64, 3, time.Hour); err == nil {
			t.Error("it did not end with its context")
		}
	})
}
