package sealed

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/flynn/noise"

	"weft/packet/packettest"
)

// wireVectors makes the vectors of docs/wire.md anew: name, bytes.
func wireVectors(t *testing.T) (names []string, values map[string][]byte) {
	t.Helper()
	values = map[string][]byte{}
	put := func(name string, b []byte) {
		names = append(names, name)
		values[name] = b
	}
	password := NewPassword([]byte("correct horse battery staple"))
	psk := password.PSK()
	key := func(name string) (noise.DHKey, [32]byte) {
		private := password.NodeKey(name)
		public, err := PublicKey(private)
		if err != nil {
			t.Fatal(err)
		}
		put("public-"+name, public[:])
		return noise.DHKey{Private: private[:], Public: public[:]}, public
	}
	put("psk", psk[:])
	a, _ := key("a")
	b, publicB := key("b")
	ephemeral := func(first byte) *bytes.Reader {
		e := make([]byte, 32)
		for i := range e {
			e[i] = first + byte(i)
		}
		return bytes.NewReader(e)
	}
	sum := func(msg []byte, to [32]byte) []byte {
		key := hashKey("weft mac1", to)
		s := mac(key[:], msg)
		return append(msg, s[:]...)
	}
	const indexA, indexB = 0x0a0a0a0a, 0x0b0b0b0b
	hs, msg1, err := initiate(ephemeral(0x20), a, psk, publicB, indexA, offer{stamp: 0x18a0c7d2a3b4c5d6, cipher: AES256GCM, lanes: 2, epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	msg1 = append(sum(msg1, publicB), make([]byte, macLen)...)
	put("initiation", msg1)
	answer, who, o, err := readInitiation(ephemeral(0x40), b, psk, msg1)
	if err != nil || !bytes.Equal(who[:], a.Public) || o.stamp != 0x18a0c7d2a3b4c5d6 {
		t.Fatalf("%x, %+v, %v", who, o, err)
	}
	keys, msg2, err := respond(answer, indexA, offer{index: indexB, cipher: ChaCha20Poly1305, lanes: 2})
	if err != nil {
		t.Fatal(err)
	}
	put("response", sum(msg2, [32]byte(a.Public)))
	same, _, err := readResponse(hs, sum(msg2, [32]byte(a.Public)))
	if err != nil || same != keys {
		t.Fatalf("the keys differ: %v", err)
	}
	put("key-a-b", keys.toResponder[:])
	put("key-b-a", keys.toInitiator[:])
	plain := packettest.UDP(netip.MustParseAddrPort("10.244.1.2:40000"), netip.MustParseAddrPort("10.244.2.3:53"), 4, 0xc0)
	put("plain", plain)
	for _, c := range ciphersUnderTest() {
		aead, err := newAEAD(c, keys.toResponder)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, HeaderLen)
		putHeader(data, headerWord(TypeData, 0, 1, 1, indexB), 7)
		var nonce [12]byte
		putNonce(&nonce, 1, 7)
		put(c.String(), aead.Seal(data, nonce[:], plain, data))
	}
	return names, values
}

// TestWireDocument holds the vectors and figures in docs/wire.md to the code.
func TestWireDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	names, values := wireVectors(t)
	block := regexp.MustCompile("(?s)```sealed-vector\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("docs/wire.md has no block sealed-vector")
	}
	said := map[string]string{}
	name := ""
	for line := range strings.Lines(string(block[1])) {
		if head, rest, found := strings.Cut(line, " "); found && head != "" {
			name, line = head, rest
		}
		said[name] += strings.Join(strings.Fields(line), "")
	}
	var want strings.Builder
	for _, n := range names {
		fmt.Fprintf(&want, "%s\n", n)
		for data := values[n]; len(data) > 0; {
			k := min(32, len(data))
			fmt.Fprintf(&want, "  %s\n", hex.EncodeToString(data[:k]))
			data = data[k:]
		}
		if said[n] != hex.EncodeToString(values[n]) {
			t.Errorf("%s: the document says %q", n, said[n])
		}
	}
	if t.Failed() {
		t.Logf("the code says:\n%s", want.String())
	}
	for _, figure := range []string{
		fmt.Sprintf("initiation, %d bytes", initiationLen), fmt.Sprintf("response, %d bytes", responseLen),
		fmt.Sprintf("cookie, %d bytes", cookieLen), fmt.Sprintf("confirmation, %d bytes", confirmLen),
		fmt.Sprintf("%d wide", windowSize),
	} {
		if !strings.Contains(string(text), figure) {
			t.Errorf("docs/wire.md does not say %q", figure)
		}
	}
	for r := range numReasons {
		if !strings.Contains(string(text), "`"+r.String()+"`") {
			t.Errorf("docs/wire.md does not explain the rejection %q", r)
		}
	}
}
