package userspace

import (
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/zap"

	"weft/backend"
	"weft/hostnet"
	"weft/internal/nettest"
)

// TestOutside: where packets leave by another namespace, routers are heard there.
func TestOutside(t *testing.T) {
	for _, other := range []bool{false, true} {
		here, there := nettest.New(t), nettest.New(t)
		s := backend.Settings{Node: "a", Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Port: 4789, VNI: 1, Queues: 1, Log: zap.NewNop()}
		var err error
		if other {
			if s.Outside, err = backend.OpenOutside(there.Path(), s.Log); err != nil {
				t.Fatal(err)
			}
		}
		var b backend.Backend
		here.Do(func() {
			if s.Host, err = hostnet.New(s.Log); err == nil {
				b, err = New(Kind{Overhead: 22})(s)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for ns, want := range map[*nettest.NS]bool{here: !other, there: other} {
			if out := ns.MustRun(t, "ss", "-w", "-n", "-a"); strings.Contains(out, " 0.0.0.0:1 ") != want {
				t.Errorf("outside elsewhere %v: heard %v, want %v:\n%s", other, !want, want, out)
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Host.Close(); err != nil {
			t.Error(err)
		}
	}
}
