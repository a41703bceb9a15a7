package sealed

import (
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"
)

// A sealed data packet, the payload of an underlay UDP datagram, 32 bits a row, big-endian:
//
//	 0 |   Type = 4    |   Flags = 0   |     Epoch     |     Lane      |
//	 4 |                        Receiver index                         |
//	 8 |                                                               |
//	12 |                      Counter, 64 bits                         |
//	16 |  AEAD(VXLAN packet) …                                         |
//	   |  … authentication tag, 16 bytes                               |
//
// The header is the AEAD's associated data; the nonce is Lane (32 bits) ‖ Counter (64 bits).
const (
	HeaderLen = 16
	TagLen    = chacha20poly1305.Overhead // of all ciphers: 16

	typeInitiation = 1
	typeResponse   = 2
	typeCookie     = 3
	// TypeData is the first byte of what belongs to the lanes; everything else does not. A
	// plaintext tunnel packet begins with 8 or more, so neither can be taken for the other.
	TypeData    = 4
	typeConfirm = 5 // a data header and a tag without data, sent and received outside the lanes

	// LaneOffset is where the sender's lane number is, for steering.
	LaneOffset = 3

	// controlLane is the lane number of confirmations; data lanes are below it.
	controlLane = 255
	// MaxLanes is how many lanes a node may have.
	MaxLanes = controlLane

	flagAsk = 1 // of confirmations: answer with one
)

// header is a data header in two words, as it is compared and written.
//
//	first: type ‖ flags ‖ epoch ‖ lane ‖ index
func headerWord(typ, flags, epoch, lane uint8, index uint32) uint64 {
	return uint64(typ)<<56 | uint64(flags)<<48 | uint64(epoch)<<40 | uint64(lane)<<32 | uint64(index)
}

func putHeader(h []byte, word, counter uint64) {
	binary.BigEndian.PutUint64(h, word)
	binary.BigEndian.PutUint64(h[8:], counter)
}

// putNonce writes the nonce of a packet: unique under a key because lanes never share a number and
// a lane never uses a counter twice.
func putNonce(n *[12]byte, lane uint32, counter uint64) {
	binary.BigEndian.PutUint32(n[:], lane)
	binary.BigEndian.PutUint64(n[4:], counter)
}
