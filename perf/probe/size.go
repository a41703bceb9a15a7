package probe

import (
	"fmt"
	"net/netip"
)

// Header lengths in bytes (RFC 791, 8200, 768, 9293; 7323 for the timestamps option with padding).
const (
	ipv4Header    = 20
	ipv6Header    = 40
	udpHeader     = 8
	tcpHeader     = 20
	tcpTimestamps = 12
)

func ipHeader(a netip.Addr) int {
	if a.Unmap().Is4() {
		return ipv4Header
	}
	return ipv6Header
}

func ipName(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// udpPayload is the payload of a datagram whose IP packet is size bytes long.
func udpPayload(size int, to netip.Addr) (int, error) {
	headers := ipHeader(to) + udpHeader
	if size < headers+probeHeader {
		return 0, fmt.Errorf("size %d: at least %d is needed over %s (IP and UDP headers %d, sequence number %d)",
			size, headers+probeHeader, ipName(to), headers, probeHeader)
	}
	return size - headers, nil
}

// tcpPayload is the payload of a segment whose IP packet is size bytes long, at least 1: with
// timestamps the shortest packet with data has 53 bytes over IPv4 and 73 over IPv6, and that is
// what smaller sizes become.
func tcpPayload(size int, to netip.Addr, timestamps bool, mss int) (int, error) {
	headers := ipHeader(to) + tcpHeader
	if size <= headers {
		return 0, fmt.Errorf("size %d: at least %d is needed over %s (IP and TCP headers %d, one byte)",
			size, headers+1, ipName(to), headers)
	}
	if timestamps {
		headers += tcpTimestamps
	}
	payload := max(size-headers, 1)
	if payload > mss {
		return 0, fmt.Errorf("size %d: the path to %s carries IP packets of at most %d", size, to, headers+mss)
	}
	return payload, nil
}

// imixSizes is one turn of the simple IMIX (RFC 6985, appendix A, by IP length): 40, 576 and 1500 bytes as 7:4:1. The order is that of a well
// shuffled dozen: sizes change as often as they do by chance.
var imixSizes = []int{40, 40, 40, 576, 576, 40, 40, 1500, 576, 40, 40, 576}

// mix is the sizes of a test's packets in turn; nil where all have one.
func (s Spec) mix() []int {
	switch {
	case s.param(imix.Name) == 1:
		return imixSizes
	case s.param(second.Name) > 0:
		return []int{s.param(size.Name), s.param(second.Name)}
	}
	return nil
}

// maxPacket is what an IP packet has at most, bytes.
const maxPacket = 65535

// payloads makes payloads of packet sizes: none larger than the path carries, and none too small for the header.
func payloads(sizes []int, mtu int, to netip.Addr) []int {
	list := make([]int, len(sizes))
	for i, size := range sizes {
		list[i] = max(min(size, mtu)-ipHeader(to)-udpHeader, probeHeader)
	}
	return list
}
