package sealed

import (
	"crypto/ecdh"
	"errors"
	"io"

	"github.com/flynn/noise"
)

// suite is that of Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s.
var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

// prologue begins what both sides of a handshake must agree on; the initiation's header follows.
const prologue = "weft sealed 1"

// noiseConfig is a handshake's configuration. peer is the responder's key, nil at the responder,
// which learns its peer's from the first message.
func noiseConfig(rand io.Reader, me noise.DHKey, psk [32]byte, peer []byte, header []byte) noise.Config {
	return noise.Config{
		CipherSuite: suite, Random: rand, Pattern: noise.HandshakeIK, Initiator: peer != nil,
		Prologue: append([]byte(prologue), header...), PresharedKey: psk[:], PresharedKeyPlacement: 2,
		StaticKeypair: me, PeerStatic: peer,
	}
}

// initiate makes an initiation without its MACs, and the state that reads the answer.
func initiate(rand io.Reader, me noise.DHKey, psk, peer [32]byte, index uint32, o offer) (*noise.HandshakeState, []byte, error) {
	msg := make([]byte, messageHeader, initiationLen)
	putMessageHeader(msg, typeInitiation, index)
	hs, err := noise.NewHandshakeState(noiseConfig(rand, me, psk, peer[:], msg))
	if err != nil {
		return nil, nil, err
	}
	msg, _, _, err = hs.WriteMessage(msg, o.payload1())
	return hs, msg, err
}

// readInitiation opens an initiation: whose it is and what it offers.
func readInitiation(rand io.Reader, me noise.DHKey, psk [32]byte, msg []byte) (*noise.HandshakeState, [32]byte, offer, error) {
	hs, err := noise.NewHandshakeState(noiseConfig(rand, me, psk, nil, msg[:messageHeader]))
	if err != nil {
		return nil, [32]byte{}, offer{}, err
	}
	payload, _, _, err := hs.ReadMessage(nil, msg[messageHeader:messageHeader+noise1Len])
	if err != nil {
		return nil, [32]byte{}, offer{}, err
	}
	o, err := parsePayload1(payload)
	return hs, [32]byte(hs.PeerStatic()), o, err
}

// secrets are the keys of both directions.
type secrets struct{ toResponder, toInitiator [32]byte }

func secretsOf(toResponder, toInitiator *noise.CipherState) secrets {
	return secrets{toResponder.UnsafeKey(), toInitiator.UnsafeKey()}
}

// respond makes a response without its MAC, and the keys.
func respond(hs *noise.HandshakeState, index uint32, o offer) (secrets, []byte, error) {
	msg := make([]byte, messageHeader, responseLen)
	putMessageHeader(msg, typeResponse, index)
	msg, a, b, err := hs.WriteMessage(msg, o.payload2())
	if err != nil {
		return secrets{}, nil, err
	}
	return secretsOf(a, b), msg, nil
}

// readResponse opens a response. After an error the state still reads another response: a forged one
// must not end the handshake.
func readResponse(hs *noise.HandshakeState, msg []byte) (secrets, offer, error) {
	if lowOrder(msg[messageHeader : messageHeader+32]) { // the library would be left half-way
		return secrets{}, offer{}, errors.New("sealed: a public key of low order")
	}
	payload, a, b, err := hs.ReadMessage(nil, msg[messageHeader:messageHeader+noise2Len])
	if err != nil {
		return secrets{}, offer{}, err
	}
	o, err := parsePayload2(payload)
	return secretsOf(a, b), o, err
}

// probe is any private key: multiplied by it, points of low order become zero (RFC 7748 §6.1), which
// crypto/ecdh reports.
var probe = func() *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey([]byte("any thirty-two bytes will do .. "))
	if err != nil {
		panic(err) // 32 bytes are always a key
	}
	return k
}()

func lowOrder(point []byte) bool {
	public, err := ecdh.X25519().NewPublicKey(point)
	if err != nil {
		return true
	}
	_, err = probe.ECDH(public)
	return err != nil
}
