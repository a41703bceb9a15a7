package daemon

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"weft/control"
)

func TestSubnetEnv(t *testing.T) {
	network := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	self := control.Node{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}}
	file := filepath.Join(t.TempDir(), "run", "subnet.env")
	for range 2 {
		if err := writeSubnetEnv(file, subnetEnv(network, self, 1450)); err != nil {
			t.Fatal(err)
		}
		// As flanneld 0.28 writes it.
		const want = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n" +
			"FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("got %q %v, want %q", got, err, want)
		}
	}
	for range 2 { // no prefix: nothing to hand over
		if err := writeSubnetEnv(file, subnetEnv(network, control.Node{}, 1450)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is still there: %v", err)
		}
	}
}
