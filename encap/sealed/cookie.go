package sealed

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// cookieSecretAge is how long a secret makes cookies; cookies of the one before it are still taken.
const cookieSecretAge = 120 * time.Second

// baker makes cookies: a cookie proves that its owner receives at the address it sends from. It
// keeps nothing per address: a cookie is a MAC of the address, keyed by a secret that changes.
type baker struct {
	rand    io.Reader
	secrets [2][32]byte // the current and the one before
	since   time.Time
}

func (k *baker) refresh(now time.Time) error {
	if !k.since.IsZero() && now.Sub(k.since) < cookieSecretAge {
		return nil
	}
	k.secrets[1] = k.secrets[0]
	if k.since.IsZero() { // no cookie was ever made with a secret that is all zero
		if _, err := io.ReadFull(k.rand, k.secrets[1][:]); err != nil {
			return fmt.Errorf("sealed: read random bytes: %w", err)
		}
	}
	if _, err := io.ReadFull(k.rand, k.secrets[0][:]); err != nil {
		return fmt.Errorf("sealed: read random bytes: %w", err)
	}
	k.since = now
	return nil
}

func cookieOf(secret [32]byte, from netip.AddrPort) [macLen]byte {
	text, _ := from.MarshalBinary() // never fails
	return mac(secret[:], text)
}

// valid says whether MAC 2 of an initiation was made with a cookie for its source.
func (k *baker) valid(msg []byte, from netip.AddrPort) bool {
	at := len(msg) - macLen
	for _, secret := range k.secrets {
		cookie := cookieOf(secret, from)
		if equalMAC(mac(cookie[:], msg[:at]), msg[at:]) {
			return true
		}
	}
	return false
}

// reply makes the cookie message that answers an initiation. The cookie is sealed with a key that
// follows from our public key, and bound to the initiation's MAC 1, so that only who has sent that
// initiation, or seen it, can use or forge it.
func (k *baker) reply(initiation []byte, from netip.AddrPort, key [32]byte) ([]byte, error) {
	msg := make([]byte, messageHeader+cookieNonceLen, cookieLen)
	putMessageHeader(msg, typeCookie, messageIndex(initiation))
	nonce := msg[messageHeader:]
	if _, err := io.ReadFull(k.rand, nonce); err != nil {
		return nil, fmt.Errorf("sealed: read random bytes: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, err
	}
	cookie := cookieOf(k.secrets[0], from)
	return aead.Seal(msg, nonce, cookie[:], mac1Of(initiation)), nil
}

// mac1Of is MAC 1 of an initiation.
func mac1Of(initiation []byte) []byte {
	return initiation[initiationLen-2*macLen : initiationLen-macLen]
}

// openCookie returns the cookie in a cookie message, for the initiation with that MAC 1.
func openCookie(msg, mac1 []byte, key [32]byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, msg[messageHeader:messageHeader+cookieNonceLen], msg[messageHeader+cookieNonceLen:], mac1)
}
