package nettest

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// End is one end of a veth pair: a device in a namespace with addresses.
type End struct {
	NS    *NS
	Dev   string
	Addrs []netip.Prefix
}

// Join makes a veth pair between two namespaces, both ends up with the given MTU (0 = 1500) and addresses. Both
// ends are made inside their namespaces; neither is ever visible elsewhere. It vanishes with either namespace.
func Join(a, b End, mtu int) error {
	if mtu == 0 {
		mtu = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = a.Dev, mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace = b.Dev, uint32(mtu), netlink.NsFd(b.NS.FD())
	if err := a.NS.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("nettest: veth %s in %s to %s in %s: %w", a.Dev, a.NS.name, b.Dev, b.NS.name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.NS.LinkUp(e.Dev); err != nil {
			return err
		}
		if err := e.NS.AddAddrs(e.Dev, e.Addrs...); err != nil {
			return err
		}
	}
	return nil
}
