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

// udpPayload is the payload of a datagram whose IP packet is size bytes long.
func udpPayload(size int, to netip.Addr) (int, error) {
	headers := ipHeader(to) + udpHeader
	if size < headers+probeHeader {
		return 0, fmt.Errorf("size %d: at least %d is needed to %s (IP and UDP headers %d, sequence number %d)",
			size, headers+probeHeader, to, headers, probeHeader)
	}
	return size - headers, nil
}

// tcpPayload is the payload of a segment whose IP packet is size bytes long, at least 1: with
// timestamps the shortest packet with data has 53 bytes over IPv4 and 73 over IPv6, and that is
// what smaller sizes become.
func tcpPayload(size int, to netip.Addr, timestamps bool, mss int) (int, error) {
	headers := ipHeader(to) + tcpHeader
	if size <= headers {
		return 0, fmt.Errorf("size %d: at least %d is needed to %s (IP and TCP headers %d, one byte)",
			size, headers+1, to, headers)
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
