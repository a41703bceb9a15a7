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

// Seq returns the sequence number.
func (t TCPView) Seq() uint32 { return binary.BigEndian.Uint32(t[4:]) }

// Flags returns the TCPFlag bits.
func (t TCPView) Flags() uint8 { return t[13] }
