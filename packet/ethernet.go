package packet

import "encoding/binary"

// EtherTypes (IEEE 802 numbers).
const (
	EtherTypeIPv4 = 0x0800
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
)

// EthernetView is an Ethernet II frame, without preamble and FCS. It shares the frame's memory.
//
//	 0 |         Destination MAC, 6 bytes          |
//	 6 |            Source MAC, 6 bytes            |
//	12 |  EtherType    |  14  payload, padding …
//
// ParseEthernet makes one; after it returned Alive no method panics.
type EthernetView []byte

// ParseEthernet checks that b holds a whole Ethernet header; TooShort if not. The EtherType is the
// caller's to judge: a length (802.3, below 0x600) and a VLAN tag are values like any other.
func ParseEthernet(b []byte) (EthernetView, Drop) {
	if len(b) < EthernetHeader {
		return nil, TooShort
	}
	return EthernetView(b), Alive
}

// Dst returns the destination MAC address.
func (e EthernetView) Dst() [6]byte { return [6]byte(e[0:6]) }

// Src returns the source MAC address.
func (e EthernetView) Src() [6]byte { return [6]byte(e[6:12]) }

// Type returns the EtherType.
func (e EthernetView) Type() uint16 { return binary.BigEndian.Uint16(e[12:14]) }

// Payload returns what follows the header, padding included.
func (e EthernetView) Payload() []byte { return e[EthernetHeader:] }

// PutEthernet writes an Ethernet header into the first 14 bytes of b. It panics if b is shorter.
func PutEthernet(b []byte, dst, src [6]byte, etherType uint16) {
	_ = b[EthernetHeader-1]
	copy(b[0:6], dst[:])
	copy(b[6:12], src[:])
	binary.BigEndian.PutUint16(b[12:14], etherType)
}
