package mesh

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Whatever goes over the network is sealed with AES-256-GCM under a key of the day, which follows from the password (HKDF, RFC 5869). A
// packet is
//
//	version 1 | day 4 | nonce 12 | sealed
//
// with the first five bytes authenticated besides. Days count from 1970, UTC; a node takes those of yesterday, today and tomorrow by its own
// clock. What opens with a key of another day is of this cluster, and somebody's clock is wrong: that is told apart from another password.
const (
	sealVersion = 1
	dayLen      = 4
	nonceLen    = 12
	tagLen      = 16
	headLen     = 1 + dayLen
	overhead    = headLen + nonceLen + tagLen // of a packet, bytes
)

// Secret is what follows from a password for the mesh, 32 bytes.
type Secret = [32]byte

var errPassword = errors.New("another password")

// clockError says that what was read is sealed with this cluster's password, and a key of another day.
type clockError struct{ days int } // the other one's day less this node's

func (e clockError) Error() string {
	if e.days < 0 {
		return fmt.Sprintf("its clock is %d days behind this node's", -e.days)
	}
	return fmt.Sprintf("its clock is %d days ahead of this node's", e.days)
}

// sealer seals with the first of its secrets and opens with any.
type sealer struct {
	secrets []Secret // one at least
	clock   func() time.Time

	mu   sync.Mutex
	keys map[dayKey]cipher.AEAD // of the days that count
}

type dayKey struct {
	secret int // index
	day    uint32
}

func newSealer(secrets []Secret, clock func() time.Time) *sealer {
	return &sealer{secrets: secrets, clock: clock, keys: map[dayKey]cipher.AEAD{}}
}

func (s *sealer) today() uint32 { return uint32(s.clock().Unix() / (24 * 60 * 60)) }

// apart is how many days day is ahead of today.
func apart(day, today uint32) int { return int(int32(day - today)) }

// derive makes a key of a secret for one purpose.
func derive(secret []byte, what string) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, what, 32)
	if err != nil {
		panic(err) // only of a length that is out of range
	}
	return key
}

func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only of a key of another length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only of another block size
	}
	return aead
}

func (s *sealer) dayKey(k dayKey) []byte {
	return derive(s.secrets[k.secret][:], fmt.Sprintf("weft mesh day %d", k.day))
}

// aead returns the cipher of a day. Those that count are kept, three days for each secret.
func (s *sealer) aead(k dayKey) cipher.AEAD {
	today := s.today()
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.keys[k]; a != nil {
		return a
	}
	a := newAEAD(s.dayKey(k))
	if d := apart(k.day, today); d >= -1 && d <= 1 {
		for old := range s.keys {
			if d := apart(old.day, today); d < -1 || d > 1 {
				delete(s.keys, old)
			}
		}
		s.keys[k] = a
	}
	return a
}

// seal makes a packet of what is to be said.
func (s *sealer) seal(plain []byte) []byte {
	day := s.today()
	out := make([]byte, headLen+nonceLen, len(plain)+overhead)
	out[0] = sealVersion
	binary.BigEndian.PutUint32(out[1:], day)
	rand.Read(out[headLen:]) // never fails
	return s.aead(dayKey{0, day}).Seal(out, out[headLen:], plain, out[:headLen])
}

// open returns what a packet says, and which secret it is sealed with. The error is errPassword or a clockError.
func (s *sealer) open(packet []byte) (plain []byte, secret int, err error) {
	if len(packet) < overhead || packet[0] != sealVersion {
		return nil, 0, errPassword
	}
	day := binary.BigEndian.Uint32(packet[1:])
	for i := range s.secrets {
		plain, err := s.aead(dayKey{i, day}).Open(nil, packet[headLen:headLen+nonceLen], packet[headLen+nonceLen:], packet[:headLen])
		if err != nil {
			continue
		}
		if d := apart(day, s.today()); d < -1 || d > 1 {
			return nil, i, clockError{d}
		}
		return plain, i, nil
	}
	return nil, 0, errPassword
}
