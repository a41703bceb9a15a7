package pods

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"weft/control"
	"weft/hostnet"
	"weft/internal/ipnet"
)

// Owner is the name under which pods hand the Host what they want.
const Owner = "pods"

// table is the nftables table of masquerading, one in family inet.
const table = "weft"

// attachment is a record as it is in force, or being put in force.
type attachment struct {
	*record
	mac     [6]byte // record.MAC
	mtu     int
	furnish int // number of the node's end for which the pod's end was set up last; 0 = it was not
}

// plan says what the node's kernel must hold for attachments, sorted by name. A node without pods needs none of it: connection
// tracking, which masquerading brings, costs.
func plan(all []*attachment, n Node, o Options) hostnet.Want {
	var w hostnet.Want
	if len(all) == 0 {
		return w
	}
	if o.Attach == Bridge || slices.ContainsFunc(all, func(a *attachment) bool { return a.Bridged }) {
		w.Links = append(w.Links, hostnet.Link{Name: hostnet.Bridge, MTU: n.MTU, Bridge: true})
		for _, p := range n.Prefixes {
			a := netip.PrefixFrom(control.HostAddr(p), p.Bits())
			w.Addrs = append(w.Addrs, hostnet.Addr{Dev: hostnet.Bridge, Prefix: a, OnLink: !a.IsSingleIP()})
		}
	}
	for _, a := range all {
		planOne(&w, a)
		if o.SpoofCheck {
			w.Tables = append(w.Tables, check(a, n.Ports))
		}
	}
	w.Passage = n.Network
	if o.Masquerade {
		w.Tables = append(w.Tables, masquerade(n))
	}
	return w
}

// planOne adds the node's part of one attachment.
func planOne(w *hostnet.Want, a *attachment) {
	name := a.link()
	link := hostnet.Link{Name: name, MTU: a.mtu, Quiet: true,
		Veth: &hostnet.Veth{Netns: a.Netns, Inode: a.Inode, Peer: a.IfName, PeerMAC: a.mac}}
	if a.Bridged {
		link.Master = hostnet.Bridge
		w.Links = append(w.Links, link)
		return
	}
	w.Links = append(w.Links, link)
	gateways := map[netip.Addr]bool{}
	for _, ip := range a.Addrs {
		if g := gatewayOf(ip); !gateways[g] {
			gateways[g] = true
			w.Addrs = append(w.Addrs, hostnet.Addr{Dev: name, Prefix: ipnet.Host(g)})
		}
		w.Routes = append(w.Routes, hostnet.Route{Dst: ipnet.Host(ip), Dev: name})
		w.Neighbors = append(w.Neighbors, hostnet.Neighbor{Dev: name, IP: ip, MAC: a.mac})
	}
}

var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// masquerade is the table by which what pods send to outside the overlay leaves under the node's address: to the overlay or to a
// group as it is; else from our pods masqueraded. To a random port: the kernel chooses it before it knows that no other packet has just got
// the same, and of two packets with one port the later is lost.
func masquerade(n Node) hostnet.Table {
	chain := hostnet.TableChain{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	for _, p := range slices.Concat(n.Network, n.Prefixes, multicast) {
		chain.Rules = append(chain.Rules, append(hostnet.Match(p, false, true), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	for _, p := range n.Prefixes {
		chain.Rules = append(chain.Rules, append(hostnet.Match(p, true, true), &expr.Counter{}, &expr.Masq{FullyRandom: true}))
	}
	return hostnet.Table{Name: table, Family: nftables.TableFamilyINet, Chains: []hostnet.TableChain{chain},
		Masquerades: &hostnet.Masqueraded{From: n.Prefixes, Except: slices.Concat(n.Network, n.Prefixes, multicast)}}
}

// newAttachment returns what a record is about.
func newAttachment(r *record, mtu int) *attachment {
	a := &attachment{record: r, mtu: mtu}
	if mac, err := net.ParseMAC(r.MAC); err == nil {
		copy(a.mac[:], mac)
	}
	return a
}
