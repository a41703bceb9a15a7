package hostnet

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestInert: by which devices nothing leaves, whatever addresses they have. A VRF's own device is its loopback (Documentation/networking/vrf.rst).
func TestInert(t *testing.T) {
	for name, c := range map[string]struct {
		link  netlink.Link
		inert bool
	}{
		"lo":    {&netlink.Device{LinkAttrs: netlink.LinkAttrs{Flags: net.FlagLoopback}}, true},
		"dummy": {&netlink.Dummy{}, true},
		"vrf":   {&netlink.Vrf{}, true},
		"card":  {&netlink.Device{}, false},
		"vlan":  {&netlink.Vlan{}, false},
	} {
		if got := deviceOf(c.link).Inert; got != c.inert {
			t.Errorf("%s: %v", name, got)
		}
	}
}
