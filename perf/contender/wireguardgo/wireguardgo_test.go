package wireguardgo

import (
	"strings"
	"testing"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

// TestRunRefuses: settings that cannot be used end the process, and take its device along. That good ones carry
// packets is the lab's own test.
func TestRunRefuses(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	var err error
	ns.Do(func() {
		err = Run(t.Context(), Config{Device: "wg0", MTU: 1420, Settings: "private_key=short\n"}, func() { t.Error("ready without a key") })
	})
	if err == nil || !strings.Contains(err.Error(), "settings") {
		t.Errorf("impossible settings: %v", err)
	}
	if _, err := ns.Netlink().LinkByName("wg0"); err == nil {
		t.Error("the device outlives what made it")
	}
	ns.Do(func() {
		err = Run(t.Context(), Config{Device: "a-name-that-is-too-long", MTU: 1420}, func() { t.Error("ready without a device") })
	})
	if err == nil || !strings.Contains(err.Error(), "make TUN device") {
		t.Errorf("an impossible device: %v", err)
	}
}
