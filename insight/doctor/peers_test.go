package doctor

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/internal/nettest"
)

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

// TestSilent: of a peer with several addresses it is told which one answers.
func TestSilent(t *testing.T) {
	nettest.RequireRoot(t)
	nowhere, here := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")
	p := api.Peer{Node: "b", Endpoint: netip.AddrPortFrom(nowhere, 4789)}
	nodes := []api.Node{{Name: "a", Endpoints: []netip.Addr{here}}, {Name: "b", Endpoints: []netip.Addr{nowhere, here}}}
	nettest.New(t).Do(func() {
		other := []netip.Addr{netip.MustParseAddr("192.0.2.2")}
		if f := silent(t.Context(), "peer b", p, other); f.Level != Wrong || f.Found != "answers neither through the tunnel nor at 192.0.2.1, 192.0.2.2" {
			t.Errorf("%+v", f)
		}
		if f := silent(t.Context(), "peer b", p, besides(p, nodes)); f.Level != Wrong || f.Found != "answers at 127.0.0.1, but neither through the tunnel nor at 192.0.2.1, which packets go to" {
			t.Errorf("%+v", f)
		}
	})
}

func TestPeersWithoutAny(t *testing.T) {
	if f := peers(t.Context(), api.Status{}, nil, nil, nil); len(f) != 1 || f[0].Level != OK {
		t.Errorf("%+v", f)
	}
	if f := peers(t.Context(), api.Status{}, nil, nil, errors.New("x")); len(f) != 1 || f[0].Level != Wrong {
		t.Errorf("%+v", f)
	}
	six := api.Peer{Node: "b", Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}}
	s := api.Status{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}
	if f := peers(t.Context(), s, []api.Peer{six}, nil, nil); len(f) != 1 || f[0].Level != Note || !strings.Contains(f[0].Found, "no prefix of an IP version") {
		t.Errorf("%+v", f)
	}
}
