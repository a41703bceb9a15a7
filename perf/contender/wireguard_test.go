package contender

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"weft/perf/testbed"
)

// TestWireguardSettings reads what two nodes are told: each has its own key, the other's address and prefixes, and
// knows the other by the key that the other has.
func TestWireguardSettings(t *testing.T) {
	nodes := []*testbed.Node{
		{Name: "a", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}},
		{Name: "b", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")},
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
	}
	keys := make([]*ecdh.PrivateKey, len(nodes))
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	for self, want := range []string{
		"listen_port=51820 endpoint=192.0.2.2:51820 allowed_ip=10.244.2.0/24",
		"listen_port=51820 endpoint=192.0.2.1:51820 allowed_ip=10.244.1.0/24 allowed_ip=fd00:10:244:1::/64",
	} {
		var rest []string
		lines := bufio.NewScanner(strings.NewReader(wireguardSettings(nodes, keys, self)))
		for lines.Scan() {
			key, value, _ := strings.Cut(lines.Text(), "=")
			switch key {
			case "private_key":
				if value != hex.EncodeToString(keys[self].Bytes()) {
					t.Errorf("node %d has another's key", self)
				}
			case "public_key":
				if value != hex.EncodeToString(keys[1-self].PublicKey().Bytes()) {
					t.Errorf("node %d does not know the other's key", self)
				}
			default:
				rest = append(rest, lines.Text())
			}
		}
		if got := strings.Join(rest, " "); got != want {
			t.Errorf("node %d is told %q, want %q", self, got, want)
		}
	}
}
