package hostnet

import (
	"fmt"
	"net/netip"
	"testing"

	"weft/internal/nettest"
)

// TestGateways: what a Host put into the kernel another one finds: next hops of routes, single and several, and none of weft's own devices, of other
// tables and of others' routes.
func TestGateways(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ip")
	ns, far := nettest.New(t), nettest.New(t)
	nettest.Pair(t, nettest.End{NS: ns, Dev: "eth0"}, nettest.End{NS: far, Dev: "eth0"}, 1500)
	ns.MustRun(t, "sh", "-ec", "ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad; ip route add 198.51.100.0/24 via 192.0.2.9")
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	want := Want{
		Network:  []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")},
		NextHops: []NextHop{{ID: 1<<31 | 1, Dev: "eth0", Via: addr("192.0.2.2"), OnLink: true}, {ID: 1<<31 | 2, Dev: "eth0", Via: addr("2001:db8::3"), OnLink: true}, {ID: 1<<31 | 3, Members: [8]Member{{ID: 1<<31 | 1}, {ID: 1<<31 | 2}}}},
		Routes: []Route{{Dst: prefix("10.244.2.0/24"), Dev: "eth0", Via: addr("192.0.2.2")}, {Dst: prefix("10.244.3.0/24"), Dev: "eth0", Via: addr("2001:db8::3")}, {Dst: prefix("10.244.4.0/24"), NextHop: 1<<31 | 3},
			{Dst: prefix("fd00:10:244:2::/64"), Dev: "eth0", Via: addr("2001:db8::2")}, {Dst: prefix("10.244.5.0/24"), Dev: "eth0", Via: addr("192.0.2.2"), Table: 8700}},
	}
	ns.Do(func() {
		h, err := New(nil)
		if err == nil {
			defer h.Close()
			err = h.Apply("test", want)
		}
		if err != nil {
			t.Error(err)
			return
		}
		again, err := New(nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer again.Close()
		got, err := again.Gateways()
		if text := fmt.Sprint(got); err != nil || text != "map[10.244.2.0/24:[192.0.2.2] 10.244.3.0/24:[2001:db8::3] 10.244.4.0/24:[192.0.2.2 2001:db8::3] fd00:10:244:2::/64:[2001:db8::2]]" {
			t.Errorf("%s, %v", text, err)
		}
	})
}
