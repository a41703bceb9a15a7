package archtest

import (
	"strings"
	"testing"
)

// floors are the house from the roof to the ground; rooms of one floor are in one line. What is nearer to a name counts:
// internal/config reads the list of modes, so it stands above it. The two vocabularies are below everything.
var floors = [][]string{
	{"cmd", "deploy"},
	{"catalog", "perf", "cnibin"},
	{"node"},
	{"insight"},
	{"api"},
	{"flowcache"},
	{"backend", "policy/nft"},
	{"backend/status"},
	{"hostnet", "reach"},
	{"control/controltest", "control/etcd", "control/kubernetes", "control/mesh", "control/static", "bpf", "tun", "xdp", "underlay", "encap"},
	{"dataplane", "policy"},
	{"internal/config"},
	{"catalog/mode"},
	{"internal"},
	{"packet", "control"},
}

// floor returns the floor of a room, 0 for the roof, and how many there are for one that has none.
func floor(room string) int {
	best, length := len(floors), -1
	for i, names := range floors {
		for _, name := range names {
			if permits([]string{name + "/..."}, room) && len(name) > length {
				best, length = i, len(name)
			}
		}
	}
	return best
}

// TestFloors: what a room may import is on its own floor or below. Tests may look up.
func TestFloors(t *testing.T) {
	for name, r := range rooms {
		if floor(name) == len(floors) {
			t.Errorf("%s is on no floor", name)
		}
		for _, imp := range r.code {
			imp = strings.TrimSuffix(imp, "/...")
			if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") || imp == "" {
				continue // a library
			}
			if floor(imp) < floor(name) {
				t.Errorf("%s imports %s, which is above it", name, imp)
			}
		}
	}
	if floor("control") <= floor("catalog/mode") || floor("cmd/weft") != 0 || floor("nowhere") != len(floors) {
		t.Error("floors are not told apart")
	}
}
