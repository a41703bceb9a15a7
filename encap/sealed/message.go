package sealed

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// Handshake messages, big-endian, each one UDP datagram. MAC 1 is keyed by the receiver's public key:
// who does not know whom it speaks to costs us a hash. MAC 2 is keyed by a cookie, zero without one.
//
//	initiation   | 1 | version | 0 0 | sender index 4 | Noise message 1, 112 | MAC 1, 16 | MAC 2, 16 |
//	response     | 2 | version | 0 0 | receiver index 4 | Noise message 2, 56 | MAC 1, 16 |
//	cookie       | 3 | version | 0 0 | receiver index 4 | nonce 24 | sealed cookie 32 |
//
//	Noise message 1: e 32 | static key 48 | AEAD( stamp 8 | cipher 1 | lanes 1 | epoch 1 | 0, 5 ) 32
//	Noise message 2: e 32 | AEAD( sender index 4 | cipher 1 | lanes 1 | 0 0 ) 24
const (
	version = 1

	macLen         = 16
	messageHeader  = 8
	payload1Len    = 16
	payload2Len    = 8
	noise1Len      = 32 + 32 + 16 + payload1Len + 16
	noise2Len      = 32 + payload2Len + 16
	initiationLen  = messageHeader + noise1Len + 2*macLen
	responseLen    = messageHeader + noise2Len + macLen
	cookieNonceLen = chacha20poly1305.NonceSizeX
	cookieLen      = messageHeader + cookieNonceLen + macLen + 16
	confirmLen     = HeaderLen + TagLen
)

// putMessageHeader writes the first eight bytes of a handshake message.
func putMessageHeader(b []byte, typ uint8, index uint32) {
	b[0], b[1], b[2], b[3] = typ, version, 0, 0
	binary.BigEndian.PutUint32(b[4:], index)
}

// messageIndex is the index in a handshake message.
func messageIndex(b []byte) uint32 { return binary.BigEndian.Uint32(b[4:]) }

// wellFormed judges length and fixed bytes.
func wellFormed(b []byte, length int) bool {
	return len(b) == length && b[1] == version && b[2] == 0 && b[3] == 0
}

// offer is what each side says about the packets it will send. Initiations also carry stamp and
// epoch, responses the index.
type offer struct {
	stamp  uint64 // nanoseconds; every initiation of a node has a larger one than the last
	index  uint32
	cipher Cipher
	lanes  uint8
	epoch  uint8
}

func (o offer) payload1() []byte {
	b := make([]byte, payload1Len)
	binary.BigEndian.PutUint64(b, o.stamp)
	b[8], b[9], b[10] = uint8(o.cipher), o.lanes, o.epoch
	return b
}

func (o offer) payload2() []byte {
	b := make([]byte, payload2Len)
	binary.BigEndian.PutUint32(b, o.index)
	b[4], b[5] = uint8(o.cipher), o.lanes
	return b
}

var errOffer = errors.New("sealed: the peer offers a cipher or lanes this version does not know")

func parsePayload1(b []byte) (o offer, err error) {
	if len(b) != payload1Len {
		return o, errOffer
	}
	o = offer{stamp: binary.BigEndian.Uint64(b), cipher: Cipher(b[8]), lanes: b[9], epoch: b[10]}
	return o, o.check()
}

func parsePayload2(b []byte) (o offer, err error) {
	if len(b) != payload2Len {
		return o, errOffer
	}
	o = offer{index: binary.BigEndian.Uint32(b), cipher: Cipher(b[4]), lanes: b[5]}
	return o, o.check()
}

func (o offer) check() error {
	if _, ok := ciphers[o.cipher]; !ok || o.lanes == 0 || o.lanes > MaxLanes {
		return errOffer
	}
	return nil
}

// mac is keyed BLAKE2s of 16 bytes.
func mac(key []byte, data ...[]byte) (out [macLen]byte) {
	h, err := blake2s.New128(key)
	if err != nil {
		panic("sealed: " + err.Error()) // a key of another length than 1 to 32: a mistake in this package
	}
	for _, d := range data {
		h.Write(d)
	}
	h.Sum(out[:0])
	return out
}

func equalMAC(want [macLen]byte, got []byte) bool {
	return subtle.ConstantTimeCompare(want[:], got) == 1
}

// hashKey is BLAKE2s-256(label ‖ public key): what MAC 1 and cookies for a node are keyed by.
func hashKey(label string, public [32]byte) [32]byte {
	return blake2s.Sum256(append([]byte(label), public[:]...))
}
