package result

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"weft/perf/probe"
)

// TestVerified: samples of a test are one account, also beside another's of the same contender; what is corrupt stays so, whatever follows.
func TestVerified(t *testing.T) {
	r := New(nil, Settings{})
	four, six := probe.Selection{Test: "tcp-rr", Params: probe.Params{"family": 4}}, probe.Selection{Test: "tcp-rr", Params: probe.Params{"family": 6}}
	for n := range 10 {
		r.AddIntegrity("tun", "", four, probe.Integrity{Verified: 100})
		r.AddIntegrity("tun", "", six, probe.Integrity{Verified: 100, Corrupt: 1, CorruptPackets: 1, Damage: []string{fmt.Sprint("example ", n)}})
		r.AddIntegrity("xdp", "", six, probe.Integrity{Verified: 100})
	}
	r.AddIntegrity("tun", "", six, probe.Integrity{Verified: 100})
	if len(r.Integrity) != 3 || !r.Integrity[0].OK || r.Integrity[1].OK || !r.Integrity[2].OK {
		t.Fatalf("%+v", r.Integrity)
	}
	if i := r.Integrity[1]; i.Verified != 1100 || i.Corrupt != 10 || i.CorruptPackets != 10 || len(i.Damage) != maxDamage {
		t.Errorf("%+v", i)
	}
	sum := r.Verified()
	var corrupt *probe.CorruptError
	if err := sum.Err(); sum.Verified != 3100 || !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "10 of 3100 bytes") ||
		!strings.Contains(err.Error(), "tun tcp-rr:family=6: example 0") {
		t.Errorf("%+v: %v", sum, err)
	}
	if err := (probe.Integrity{Verified: 1}).Err(); err != nil {
		t.Errorf("nothing is corrupt, and yet: %v", err)
	}
}
