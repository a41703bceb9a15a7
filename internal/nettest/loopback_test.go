package nettest_test

import (
	"net"
	"testing"

	"weft/internal/nettest"
)

// TestFreeAddr: addresses are free, differ, and can be listened on again at once.
func TestFreeAddr(t *testing.T) {
	seen := map[string]bool{}
	for range 20 {
		at := nettest.FreeAddr(t).String()
		if seen[at] {
			t.Errorf("%s comes twice", at)
		}
		seen[at] = true
		for range 2 {
			l, err := net.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			if host, _, _ := net.SplitHostPort(c.LocalAddr().String()); host != "127.0.0.1" {
				t.Errorf("a connection to %s begins at %s", at, host)
			}
			c.Close()
			l.Close()
		}
	}
}
