package pods

import (
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

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

// plan says what the node's kernel must hold for attachments, sorted by name. A node without pods needs none of it but masquerading.
func plan(all []*attachment, n Node, o Options) hostnet.Want {
	var w hostnet.Want
	if o.Masquerade && len(n.Prefixes) > 0 { // also without pods: what enters the overlay here does not ask for them
		w.Tables = append(w.Tables, masquerade(n))
	}
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
		if o.SpoofCheck && a.mac != [6]byte{} { // else nothing would pass; see rebuild
			w.Tables = append(w.Tables, check(a, n.Ports))
		}
	}
	w.Passage = n.Network
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
		if a.mac != [6]byte{} {
			w.Neighbors = append(w.Neighbors, hostnet.Neighbor{Dev: name, IP: ip, MAC: a.mac})
		}
	}
}

var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// masquerade is the table by which what pods send to outside the overlay leaves under the node's address: to the overlay or to a
// group as it is; else from our pods masqueraded. To a random port: the kernel chooses it before it knows that no other packet has just got
// the same, and of two packets with one port the later is lost.
func masquerade(n Node) hostnet.Table {
	chain := hostnet.TableChain{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	// What is none of the overlay's and enters it here (a process bound to the node's address, a host routed by this node) does so under the
	// node's own inner address: peers take no other sources from it, and answer by the overlay.
	for _, own := range n.Prefixes {
		chain.Rules = append(chain.Rules, append(hostnet.Match(own, false, true), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	done := map[bool]bool{}
	for _, own := range n.Prefixes {
		if done[own.Addr().Is6()] {
			continue
		}
		done[own.Addr().Is6()] = true
		for _, p := range n.Network {
			if p.Addr().Is6() == own.Addr().Is6() {
				chain.Rules = append(chain.Rules, enter(p, n.Network, control.HostAddr(own)))
			}
		}
	}
	for _, p := range slices.Concat(n.Network, multicast) {
		chain.Rules = append(chain.Rules, append(hostnet.Match(p, false, true), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	for _, p := range n.Prefixes {
		chain.Rules = append(chain.Rules, append(hostnet.Match(p, true, true), &expr.Counter{}, &expr.Masq{FullyRandom: true}))
	}
	return hostnet.Table{Name: table, Family: nftables.TableFamilyINet, Chains: []hostnet.TableChain{chain},
		Masquerades: &hostnet.Masqueraded{From: n.Prefixes, Except: slices.Concat(n.Network, n.Prefixes, multicast)}}
}

// enter is the rule that gives what is for a prefix, and from none of the network's, another source address.
func enter(to netip.Prefix, network []netip.Prefix, as netip.Addr) []expr.Any {
	rule := hostnet.Match(to, false, true)
	for _, p := range network {
		if p.Addr().Is6() != to.Addr().Is6() {
			continue
		}
		source := hostnet.Match(p, true, false)
		source[len(source)-1].(*expr.Cmp).Op = expr.CmpOpNeq
		rule = append(rule, source...)
	}
	fam := uint32(unix.NFPROTO_IPV4)
	if as.Is6() {
		fam = unix.NFPROTO_IPV6
	}
	return append(rule, &expr.Counter{}, &expr.Immediate{Register: 1, Data: as.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: fam, RegAddrMin: 1, FullyRandom: true})
}

// newAttachment returns what a record is about.
func newAttachment(r *record, mtu int) *attachment {
	a := &attachment{record: r, mtu: mtu}
	if mac, err := net.ParseMAC(r.MAC); err == nil {
		copy(a.mac[:], mac)
	}
	return a
}
