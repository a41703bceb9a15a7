// Package filter says which packets a person wants to see, in words close to those of tcpdump (pcap-filter(7)):
//
//	expr      = term { "or" term }
//	term      = factor { [ "and" ] factor }
//	factor    = [ "not" ] ( "(" expr ")" | primitive )
//	primitive = [ "src" | "dst" ] [ "host" ] ADDRESS
//	          | [ "src" | "dst" ] [ "net" ] PREFIX
//	          | [ "src" | "dst" ] "port" PORT[-PORT]
//	          | "proto" NUMBER | [ "proto" ] ( "tcp" | "udp" | "icmp" | "icmp6" | "sctp" | "esp" )
//	          | "ip" | "ip6" | "arp"
//	          | "drop" [ NAME ]
//
// "&&", "||" and "!" stand for the words. `tcp port 80` is `tcp and port 80`. "drop" alone is any packet that died, with a name one
// that died for that reason (packet.Drop). A host is an address: names are not looked up.
//
// It is not libpcap's language compiled to BPF: that needs libpcap, and knows neither drops nor what is inside a tunnel.
package filter

import (
	"net/netip"

	"weft/packet"
)

// Filter is a compiled expression, immutable: many goroutines may use one. A nil Filter matches everything.
type Filter struct {
	text string
	root node
}

// String returns the expression as it was written.
func (f *Filter) String() string {
	if f == nil {
		return ""
	}
	return f.text
}

// Match says whether the filter wants the packet. It does not allocate, but v must live on the heap already, or the call puts it there.
func (f *Filter) Match(v *View) bool { return f == nil || f.root.match(v) }

// maxLayers is an outer and an inner IP packet.
const maxLayers = 2

// View is what a filter looks at: the IP packets found in a frame, from outside in, and how the frame fared. A primitive is true when it
// is true of one of them. The View shares the frame's memory.
type View struct {
	Drop   packet.Drop // why it died; Alive while it has not
	ARP    bool        // the frame is ARP
	layers [maxLayers]packet.IPView
	n      int
}

// Look begins a View of a frame that starts with what layer says: an Ethernet or an IP header. Of anything else, and of what cannot be
// parsed, nothing is known but its end.
func Look(b []byte, layer packet.Layer, drop packet.Drop) View {
	v := View{Drop: drop}
	v.Add(b, layer)
	return v
}

// Add shows the View one more packet: what a tunnel packet has inside, say. More than two are ignored.
func (v *View) Add(b []byte, layer packet.Layer) {
	if layer == packet.Ethernet {
		e, drop := packet.ParseEthernet(b)
		if drop != packet.Alive {
			return
		}
		v.ARP = v.ARP || e.Type() == packet.EtherTypeARP
		if t := e.Type(); t != packet.EtherTypeIPv4 && t != packet.EtherTypeIPv6 {
			return
		}
		b, layer = e.Payload(), packet.IP
	}
	if layer != packet.IP || v.n == maxLayers {
		return
	}
	if ip, drop := packet.ParseIP(b); drop == packet.Alive {
		v.layers[v.n] = ip
		v.n++
	}
}

// node is one part of an expression.
type node interface{ match(*View) bool }

type (
	and  struct{ a, b node }
	or   struct{ a, b node }
	not  struct{ a node }
	arp  struct{}
	drop struct{ reason packet.Drop } // Alive = any

	// end is which end of a packet a primitive is about.
	end uint8

	network struct {
		end    end
		prefix netip.Prefix
	}
	port struct {
		end      end
		from, to uint16
	}
	protocol struct{ number uint8 }
	version  struct{ number int }
)

const (
	either end = iota
	source
	destination
)

func (n and) match(v *View) bool { return n.a.match(v) && n.b.match(v) }
func (n or) match(v *View) bool  { return n.a.match(v) || n.b.match(v) }
func (n not) match(v *View) bool { return !n.a.match(v) }
func (arp) match(v *View) bool   { return v.ARP }

func (n drop) match(v *View) bool {
	if n.reason == packet.Alive {
		return v.Drop != packet.Alive
	}
	return v.Drop == n.reason
}

func (n network) match(v *View) bool {
	for _, ip := range v.layers[:v.n] {
		if n.end != destination && n.prefix.Contains(ip.Src()) || n.end != source && n.prefix.Contains(ip.Dst()) {
			return true
		}
	}
	return false
}

func (n protocol) match(v *View) bool {
	for _, ip := range v.layers[:v.n] {
		if ip.Protocol() == n.number {
			return true
		}
	}
	return false
}

func (n version) match(v *View) bool {
	for _, ip := range v.layers[:v.n] {
		if ip.Version() == n.number {
			return true
		}
	}
	return false
}

func (n port) match(v *View) bool {
	for _, ip := range v.layers[:v.n] {
		src, dst, ok := ports(ip)
		if ok && (n.end != destination && n.holds(src) || n.end != source && n.holds(dst)) {
			return true
		}
	}
	return false
}

func (n port) holds(p uint16) bool { return n.from <= p && p <= n.to }

// ports returns a packet's ports; false for one that has none, or whose are in another fragment.
func ports(ip packet.IPView) (src, dst uint16, ok bool) {
	switch ip.Protocol() {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP: // all three have them in the first four bytes
	default:
		return 0, 0, false
	}
	at, ok := ip.Transport()
	if !ok || ip.Len() < at+4 {
		return 0, 0, false
	}
	b := ip.Bytes()[at:]
	return uint16(b[0])<<8 | uint16(b[1]), uint16(b[2])<<8 | uint16(b[3]), true
}
