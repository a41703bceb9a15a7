package sealed

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"runtime"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
)

// Cipher is an AEAD with a 12-byte nonce and a 16-byte tag; its number is what handshakes carry.
type Cipher uint8

const (
	ChaCha20Poly1305 Cipher = 1 // RFC 8439
	AES128GCM        Cipher = 2 // NIST SP 800-38D
	AES256GCM        Cipher = 3
)

var ciphers = map[Cipher]struct {
	name string
	key  int // bytes
	make func([]byte) (cipher.AEAD, error)
}{
	ChaCha20Poly1305: {"chacha20-poly1305", chacha20poly1305.KeySize, chacha20poly1305.New},
	AES128GCM:        {"aes-128-gcm", 16, newGCM},
	AES256GCM:        {"aes-256-gcm", 32, newGCM},
}

// String is the cipher's name in configuration and reports.
func (c Cipher) String() string {
	if s, ok := ciphers[c]; ok {
		return s.name
	}
	return fmt.Sprintf("cipher %d", uint8(c))
}

// CipherByName returns a cipher. "auto" is aes-256-gcm where this CPU computes it in hardware, and
// chacha20-poly1305 elsewhere: AES in software is slow, and its table look-ups leak through caches.
func CipherByName(name string) (Cipher, error) {
	if name == "auto" {
		if fastGCM() {
			return AES256GCM, nil
		}
		return ChaCha20Poly1305, nil
	}
	for c, s := range ciphers {
		if s.name == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("sealed: unknown cipher %q: write auto, chacha20-poly1305, aes-128-gcm or aes-256-gcm", name)
}

// fastGCM says whether crypto/aes uses the CPU's instructions for AES and for GCM's multiplication.
func fastGCM() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	}
	return false
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// newAEAD makes the AEAD of one direction of a session from the 32 bytes that the handshake gave it.
// Each cipher has a key of its own, so that no two ever work with the same.
func newAEAD(c Cipher, secret [32]byte) (cipher.AEAD, error) {
	s, ok := ciphers[c]
	if !ok {
		return nil, fmt.Errorf("sealed: unknown %v", c)
	}
	key := derive(secret[:], "weft data key "+s.name)
	return s.make(key[:s.key])
}

// derive is BLAKE2s-256 of a label, keyed by a secret of 32 bytes at most.
func derive(secret []byte, label string) (out [32]byte) {
	h, err := blake2s.New256(secret)
	if err != nil {
		panic("sealed: " + err.Error()) // a secret longer than 32 bytes: a mistake in this package
	}
	h.Write([]byte(label))
	h.Sum(out[:0])
	return out
}
