package pods

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/hostnet"
)

// What a pod sends and is not to: names of counters, one table a pod.
const (
	dropMAC       = "wrong-mac"            // its source MAC is another than the pod was given
	dropSource    = "wrong-source"         // its source address is none that the pod was given
	dropNeighbor  = "wrong-neighbour"      // ARP or a neighbour advertisement for an address that the pod was not given
	dropRouter    = "router-advertisement" // of ICMPv6 or ICMP: pods and the node would take it for their router
	dropRedirect  = "icmp-redirect"        // ICMP that changes the routes of who gets it
	dropTooBig    = "icmp-too-big"         // ICMP that narrows paths, about a packet that was not for the pod
	dropDHCP      = "dhcp-service"         // from the port of a DHCP server
	dropOverlay   = "overlay-port"         // to a UDP port by which nodes talk: it could pass for a node's
	dropNotIP     = "not-ip"               // neither IP nor ARP
	checkFamily   = nftables.TableFamilyNetdev
	checkPriority = -500 // before what else there may be on the link
)

var checkNames = []string{dropMAC, dropSource, dropNeighbor, dropRouter, dropRedirect, dropTooBig, dropDHCP, dropOverlay, dropNotIP}

// Of the headers: offsets and numbers (RFC 791, 792, 826, 1256, 4861, 8200, 8415, 2131).
const (
	etherSource           = 6
	source4, source6      = 12, 8
	destination6          = 24
	arpSender             = 8      // sender's MAC, then its IPv4 address
	targetAddress         = 8      // of a neighbour advertisement
	quotedTo4, quotedTo6  = 24, 32 // the destination of the packet that an ICMP error is about
	icmpUnreachable       = 3
	icmpFragmentation     = 4 // code
	icmp6TooBig           = 2
	icmpRedirect          = 5
	icmpRouter            = 9
	icmp6Router           = 134
	icmp6Advertisement    = 136
	icmp6Redirect         = 137
	dhcpServer4, dhcp6    = 67, 547
	udpSource, udpDest    = 0, 2
	chainEntry, chainIPv4 = "from-pod", "ipv4"
	chainIPv6, chainARP   = "ipv6", "arp-packets" // `arp` and `udp` are words of nft's own, which it does not take for names
	chainBody, chainUDP   = "transport", "udp-packets"
)

// check is the table on a pod's link that lets only what the pod may send into the node: with the MAC and the addresses that it was given,
// and nothing by which it could pass for a router, another pod or a node. It stands at the link's ingress hook, before the bridge, the node's
// own firewall and routing. A table a pod: its counters live as long as it does, whatever becomes of other pods. It has the name of
// the link. Ports are those of the overlay.
//
// For what most packets are, TCP of an IPv4 address, that is a comparison of the MAC, of the EtherType, the address, and the protocol.
func check(a *attachment, ports []uint16) hostnet.Table {
	name := a.link()
	hook, priority := *nftables.ChainHookIngress, *nftables.ChainPriorityRef(checkPriority)
	jump := func(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: to} }
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	drop := func(name string) []expr.Any {
		const counter = 1 // NFT_OBJECT_COUNTER, linux/netfilter/nf_tables.h
		return []expr.Any{&expr.Objref{Type: counter, Name: name}, &expr.Verdict{Kind: expr.VerdictDrop}}
	}
	rule := func(parts ...[]expr.Any) (all []expr.Any) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	one := func(e expr.Any) []expr.Any { return []expr.Any{e} }

	entry := [][]expr.Any{
		rule(field(expr.PayloadBaseLLHeader, etherSource, a.mac[:], expr.CmpOpNeq), drop(dropMAC)),
		rule(etherType(unix.ETH_P_IP), one(jump(chainIPv4))),
		rule(etherType(unix.ETH_P_IPV6), one(jump(chainIPv6))),
		rule(etherType(unix.ETH_P_ARP), one(jump(chainARP))),
		drop(dropNotIP),
	}
	var v4, v6, arp, body [][]expr.Any
	for _, ip := range a.Addrs {
		if ip.Is4() {
			v4 = append(v4, rule(field(expr.PayloadBaseNetworkHeader, source4, ip.AsSlice(), expr.CmpOpEq), one(jump(chainBody))))
		} else {
			v6 = append(v6, rule(field(expr.PayloadBaseNetworkHeader, source6, ip.AsSlice(), expr.CmpOpEq), one(jump(chainBody))))
		}
	}
	own := linkLocal(a.mac)
	v6 = append(v6,
		rule(field(expr.PayloadBaseNetworkHeader, source6, own.AsSlice(), expr.CmpOpEq), one(jump(chainBody))),
		// Before it has an address: is it taken, which groups, who routes. Never further than the link.
		rule(field(expr.PayloadBaseNetworkHeader, source6, netip.IPv6Unspecified().AsSlice(), expr.CmpOpEq),
			field(expr.PayloadBaseNetworkHeader, destination6, []byte{0xff, 0x02}, expr.CmpOpEq), one(jump(chainBody))),
		drop(dropSource))
	v4 = append(v4, drop(dropSource))
	for _, ip := range append([]netip.Addr{netip.IPv4Unspecified()}, a.Addrs...) { // unspecified: is it taken (RFC 5227)
		if ip.Is4() {
			arp = append(arp, rule(field(expr.PayloadBaseNetworkHeader, arpSender, append(a.mac[:len(a.mac):len(a.mac)], ip.AsSlice()...), expr.CmpOpEq), one(accept)))
		}
	}
	arp = append(arp, drop(dropNeighbor))

	body = append(body, rule(protocol(unix.IPPROTO_TCP), one(accept)), rule(protocol(unix.IPPROTO_UDP), one(jump(chainUDP))))
	icmp := func(number, kind byte, verdict []expr.Any) []expr.Any {
		return rule(protocol(number), field(expr.PayloadBaseTransportHeader, 0, []byte{kind}, expr.CmpOpEq), verdict)
	}
	body = append(body, icmp(unix.IPPROTO_ICMP, icmpRedirect, drop(dropRedirect)), icmp(unix.IPPROTO_ICMP, icmpRouter, drop(dropRouter)),
		icmp(unix.IPPROTO_ICMPV6, icmp6Router, drop(dropRouter)), icmp(unix.IPPROTO_ICMPV6, icmp6Redirect, drop(dropRedirect)))
	// A pod routes nothing: what is too big for it was sent to it. The node's kernel believes such words of any path.
	tooBig4 := rule(protocol(unix.IPPROTO_ICMP), field(expr.PayloadBaseTransportHeader, 0, []byte{icmpUnreachable, icmpFragmentation}, expr.CmpOpEq))
	tooBig6 := rule(protocol(unix.IPPROTO_ICMPV6), field(expr.PayloadBaseTransportHeader, 0, []byte{icmp6TooBig}, expr.CmpOpEq))
	for _, ip := range a.Addrs {
		about, at := tooBig4, uint32(quotedTo4)
		if ip.Is6() {
			about, at = tooBig6, quotedTo6
		}
		body = append(body, rule(about, field(expr.PayloadBaseTransportHeader, at, ip.AsSlice(), expr.CmpOpEq), one(accept)))
	}
	body = append(body, rule(tooBig4, drop(dropTooBig)), rule(tooBig6, drop(dropTooBig)))
	for _, ip := range append([]netip.Addr{own}, a.Addrs...) {
		if ip.Is6() {
			body = append(body, icmp(unix.IPPROTO_ICMPV6, icmp6Advertisement,
				rule(field(expr.PayloadBaseTransportHeader, targetAddress, ip.AsSlice(), expr.CmpOpEq), one(accept))))
		}
	}
	body = append(body, icmp(unix.IPPROTO_ICMPV6, icmp6Advertisement, drop(dropNeighbor)))

	var udp [][]expr.Any
	for _, p := range []uint16{dhcpServer4, dhcp6} {
		udp = append(udp, rule(port(udpSource, p), drop(dropDHCP)))
	}
	for _, p := range ports {
		udp = append(udp, rule(port(udpDest, p), drop(dropOverlay)))
	}
	return hostnet.Table{Name: name, Family: checkFamily, Counters: checkNames, Chains: []hostnet.TableChain{
		{Name: chainUDP, Rules: udp}, {Name: chainBody, Rules: body}, {Name: chainARP, Rules: arp}, {Name: chainIPv6, Rules: v6}, {Name: chainIPv4, Rules: v4},
		{Name: chainEntry, Type: nftables.ChainTypeFilter, Hook: &hook, Priority: &priority, Device: name, Rules: entry},
	}}
}

// field compares bytes of a header.
func field(base expr.PayloadBase, offset uint32, bytes []byte, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(bytes))}, &expr.Cmp{Op: op, Register: 1, Data: bytes}}
}

func port(offset uint32, number uint16) []expr.Any {
	return field(expr.PayloadBaseTransportHeader, offset, binary.BigEndian.AppendUint16(nil, number), expr.CmpOpEq)
}

func etherType(number uint16) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, number)}}
}

// protocol compares that of the transport, behind extension headers.
func protocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

// linkLocal is the address that an interface makes itself of its MAC (RFC 4291 appendix A); pods' interfaces are told to.
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// dropped returns what the checks on pods' links dropped, by link and name; without what is zero.
func (m *Manager) dropped() (map[string]map[string]uint64, error) {
	if !m.o.SpoofCheck {
		return nil, nil
	}
	var links []string
	for _, a := range m.attached() {
		links = append(links, a.link())
	}
	all, err := m.o.Host.Counts(checkFamily, links...)
	for _, counts := range all {
		maps.DeleteFunc(counts, func(_ string, n uint64) bool { return n == 0 })
	}
	return all, err
}

// checked reads the MAC and the addresses back that the check on a link lets pass; nothing where there is none.
func (m *Manager) checked(link string) (mac net.HardwareAddr, addrs []netip.Addr) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(m.ns)))
	if err != nil {
		return nil, nil
	}
	fields := func(chain string, base expr.PayloadBase, offset uint32, op expr.CmpOp) (values [][]byte) {
		t := &nftables.Table{Name: link, Family: checkFamily}
		rules, _ := conn.GetRules(t, &nftables.Chain{Name: chain, Table: t})
		for _, r := range rules {
			if len(r.Exprs) < 2 || !hostnet.OurRule(r.UserData) {
				continue
			}
			p, isField := r.Exprs[0].(*expr.Payload)
			c, isCmp := r.Exprs[1].(*expr.Cmp)
			if isField && isCmp && p.Base == base && p.Offset == offset && c.Op == op {
				values = append(values, c.Data)
			}
		}
		return values
	}
	for _, b := range fields(chainEntry, expr.PayloadBaseLLHeader, etherSource, expr.CmpOpNeq) {
		mac = b
	}
	for _, b := range append(fields(chainIPv4, expr.PayloadBaseNetworkHeader, source4, expr.CmpOpEq), fields(chainIPv6, expr.PayloadBaseNetworkHeader, source6, expr.CmpOpEq)...) {
		if a, ok := netip.AddrFromSlice(b); ok && a.IsGlobalUnicast() {
			addrs = append(addrs, a)
		}
	}
	return mac, addrs
}
