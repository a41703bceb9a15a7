package packet

import "encoding/binary"

// TCPHeader is the length of a TCP header without options, in bytes.
const TCPHeader = 20

// TCP flags, byte 13 of the header.
const (
	TCPFlagFIN = 1 << iota
	TCPFlagSYN
	TCPFlagRST
	TCPFlagPSH
	TCPFlagACK
	TCPFlagURG
	TCPFlagECE
	TCPFlagCWR
)

// TCPView is a TCP segment: header, options, payload. It shares the packet's memory.
//
//	 0 |          Source Port          |        Destination Port       |
//	 4 |                        Sequence Number                        |
//	 8 |                     Acknowledgment Number                     |
//	12 |Offset |Rsrv |A|C|E|U|A|P|R|S|F|             Window            |
//	16 |            Checksum           |         Urgent Pointer        |
//	20 |                 Options, (Offset-5)*4 bytes                   |
//
// (RFC 9293 §3.1.) After Valid returned true no method panics.
type TCPView []byte

// Valid reports whether the header, options included, is whole.
func (t TCPView) Valid() bool {
	return len(t) >= TCPHeader && t.HeaderLen() >= TCPHeader && t.HeaderLen() <= len(t)
}

// HeaderLen is the length of the header with its options, in bytes.
func (t TCPView) HeaderLen() int { return int(t[12]>>4) * 4 }

// SrcPort returns the source port.
func (t TCPView) SrcPort() uint16 { return binary.BigEndian.Uint16(t[0:]) }

// DstPort returns the destination port.
func (t TCPView) DstPort() uint16 { return binary.BigEndian.Uint16(t[2:]) }

// Seq returns the sequence number.
func (t TCPView) Seq() uint32 { return binary.BigEndian.Uint32(t[4:]) }

// Ack returns the acknowledgment number.
func (t TCPView) Ack() uint32 { return binary.BigEndian.Uint32(t[8:]) }

// Flags returns the TCPFlag bits.
func (t TCPView) Flags() uint8 { return t[13] }

// Options returns the options, padding included.
func (t TCPView) Options() []byte { return t[TCPHeader:t.HeaderLen()] }

// Payload returns what follows the header.
func (t TCPView) Payload() []byte { return t[t.HeaderLen():] }

// UDPView is a UDP datagram. It shares the packet's memory.
//
//	0 |          Source Port          |        Destination Port       |
//	4 |             Length            |            Checksum           |
//
// (RFC 768.) After Valid returned true no method panics.
type UDPView []byte

// Valid reports whether the header is whole and the length is possible.
func (u UDPView) Valid() bool {
	return len(u) >= UDPHeader && u.Len() >= UDPHeader && u.Len() <= len(u)
}

// SrcPort returns the source port.
func (u UDPView) SrcPort() uint16 { return binary.BigEndian.Uint16(u[0:]) }

// DstPort returns the destination port.
func (u UDPView) DstPort() uint16 { return binary.BigEndian.Uint16(u[2:]) }

// Len is the datagram's own length, header included.
func (u UDPView) Len() int { return int(binary.BigEndian.Uint16(u[4:])) }

// Payload returns the datagram's payload by its own length.
func (u UDPView) Payload() []byte { return u[UDPHeader:u.Len()] }
