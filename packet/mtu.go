package packet

// Header lengths of the underlay, in bytes.
const (
	IPv4Header     = 20
	IPv6Header     = 40
	UDPHeader      = 8
	EthernetHeader = 14
	VXLANHeader    = 8

	// MinIPv6MTU is the smallest MTU that carries IPv6 (RFC 8200 §5).
	MinIPv6MTU = 1280
	// MinIPv4MTU is the smallest MTU that carries IPv4 hosts (RFC 791: 576 bytes are accepted).
	MinIPv4MTU = 576
)

// InnerMTU is the one place that says how large an inner IP packet may be: the underlay's MTU less
// the outer IP header (the larger one where v6 is in use), UDP, and what the stages add. For
// VXLAN, overhead is VXLANHeader + EthernetHeader.
func InnerMTU(underlay int, v6 bool, overhead int) int {
	ip := IPv4Header
	if v6 {
		ip = IPv6Header
	}
	return underlay - ip - UDPHeader - overhead
}
