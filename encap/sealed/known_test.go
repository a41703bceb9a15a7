package sealed

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestKnownAnswers holds the ciphers, as they are made and given nonces here, to published vectors:
// RFC 8439 §2.8.2 and "The Galois/Counter Mode of Operation", test cases 4 and 16.
func TestKnownAnswers(t *testing.T) {
	const (
		gcmKey   = "feffe9928665731c6d6a8f9467308308"
		gcmPlain = `d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
			1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39`
		gcmAAD = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
	)
	ladies := hex.EncodeToString([]byte("Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."))
	for _, v := range []struct {
		cipher                   Cipher
		key                      string
		lane                     uint32
		counter                  uint64
		plain, aad, cipher_, tag string
	}{
		{ChaCha20Poly1305, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", 0x07000000, 0x4041424344454647,
			ladies, "50515253c0c1c2c3c4c5c6c7",
			`d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b
			1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc
			3ff4def08e4b7a9de576d26586cec64b6116`, "1ae10b594f09e26a7e902ecbd0600691"},
		{AES128GCM, gcmKey, 0xcafebabe, 0xfacedbaddecaf888, gcmPlain, gcmAAD,
			`42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
			21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091`, "5bc94fbc3221a5db94fae95ae7121a47"},
		{AES256GCM, gcmKey + gcmKey, 0xcafebabe, 0xfacedbaddecaf888, gcmPlain, gcmAAD,
			`522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
			8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662`, "76fc6ece0f4e1768cddf8853bb2d551b"},
	} {
		t.Run(v.cipher.String(), func(t *testing.T) {
			aead, err := ciphers[v.cipher].make(unhex(t, v.key))
			if err != nil {
				t.Fatal(err)
			}
			var nonce [12]byte
			putNonce(&nonce, v.lane, v.counter)
			plain, want := unhex(t, v.plain), append(unhex(t, v.cipher_), unhex(t, v.tag)...)
			got := aead.Seal(nil, nonce[:], plain, unhex(t, v.aad))
			if !bytes.Equal(got, want) {
				t.Errorf("sealed %x, want %x", got, want)
			}
			back, err := aead.Open(nil, nonce[:], got, unhex(t, v.aad))
			if err != nil || !bytes.Equal(back, plain) {
				t.Errorf("opened %x, %v", back, err)
			}
		})
	}
}

// TestNoiseVector holds the handshake to a vector of Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s that is
// published with several implementations (no prologue), and the keys taken from it to the transport
// messages of the vector.
func TestNoiseVector(t *testing.T) {
	key := func(s string) noise.DHKey {
		private := [32]byte(unhex(t, s))
		public, err := PublicKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return noise.DHKey{Private: private[:], Public: public[:]}
	}
	initiator := key("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	responder := key("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
	psk := [32]byte(unhex(t, "2176657279736563726574766572797365637265747665727973656372657421"))
	state := func(rand string, me noise.DHKey, peer []byte) *noise.HandshakeState {
		cfg := noiseConfig(bytes.NewReader(unhex(t, rand)), me, psk, peer, nil)
		cfg.Prologue = nil
		hs, err := noise.NewHandshakeState(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return hs
	}
	a := state("202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f", initiator, responder.Public)
	b := state("4142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f60", responder, nil)

	msg1, _, _, err := a.WriteMessage(nil, []byte("test_msg_0"))
	want1 := unhex(t, `358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254d06f15f78ad0914d9715147bb5a5004b
		27345a838bab4aa8bc5f144afc2cf4cca972105ba526e8c92b759e028200e7666a3d77b86f9aa87dcfe685e771e38b97d3c5996368c663051641`)
	if err != nil || !bytes.Equal(msg1, want1) {
		t.Fatalf("message 1 %x, %v", msg1, err)
	}
	if payload, _, _, err := b.ReadMessage(nil, msg1); err != nil || string(payload) != "test_msg_0" {
		t.Fatalf("read %q, %v", payload, err)
	}
	msg2, x, y, err := b.WriteMessage(nil, []byte("test_msg_1"))
	want2 := unhex(t, `64b101b1d0be5a8704bd078f9895001fc03e8e9f9522f188dd128d9846d48466168e6913e78d7a2b04b2f3d5529e73e953bafe6c7ce2b1005367`)
	if err != nil || !bytes.Equal(msg2, want2) {
		t.Fatalf("message 2 %x, %v", msg2, err)
	}
	_, p, q, err := a.ReadMessage(nil, msg2)
	if err != nil || secretsOf(p, q) != secretsOf(x, y) {
		t.Fatalf("the two sides have other keys: %v", err)
	}
	keys := secretsOf(p, q)
	for _, v := range []struct {
		key           [32]byte
		plain, sealed string
	}{
		{keys.toResponder, "79656c6c6f777375626d6172696e65", "6013ea114b4c4884afb82bf029f72f924bd8a32c487a15a1cef4855ba234be"},
		{keys.toInitiator, "7375626d6172696e6579656c6c6f77", "8a2e7119635e41a35b7e64e0adac5483b66b1a9827895124ea07d58440b654"},
	} {
		aead, err := chacha20poly1305.New(v.key[:])
		if err != nil {
			t.Fatal(err)
		}
		if got := aead.Seal(nil, make([]byte, 12), unhex(t, v.plain), nil); !bytes.Equal(got, unhex(t, v.sealed)) {
			t.Errorf("%x, want %s", got, v.sealed)
		}
	}
}

// TestWindow holds the bit ring to a slow and obvious list.
func TestWindow(t *testing.T) {
	var w window
	seen, highest := map[uint64]bool{}, uint64(0)
	any := false
	try := func(c uint64) {
		t.Helper()
		want := !seen[c] && (!any || c > highest || highest-c < windowSize)
		if got := w.accept(c); got != want {
			t.Fatalf("counter %d with highest %d: accepted %v, want %v", c, highest, got, want)
		}
		if want {
			seen[c], highest, any = true, max(highest, c), true
		}
	}
	state := uint64(1)
	random := func(n uint64) uint64 { state = state*6364136223846793005 + 1442695040888963407; return state >> 33 % n }
	for range 200_000 {
		switch random(10) {
		case 0:
			try(highest + random(3*windowSize)) // a leap
		case 1:
			try(highest - min(highest, random(2*windowSize))) // old
		case 2:
			try(highest - min(highest, windowSize-2+random(5))) // at the edge
		default:
			try(highest + 1 - min(highest, random(3)))
		}
	}
	try(1 << 40)
	try(1<<40 - windowSize + 1)
	try(1<<40 - windowSize)
	if w.accept(^uint64(0)) {
		t.Error("the last counter of all was accepted: the window would wrap")
	}
}
