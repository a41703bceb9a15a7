// Package archtest keeps the house standing: which room may import what.
package archtest

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "weft"

// Third-party modules a room may use are listed by package path, exactly; a trailing "/..." allows
// what is below it. Everything is listed, tests included: a package that is not in this table fails
// the test, so that a new room is decided, not found.
var (
	ground = []string{"internal/nettest", "golang.org/x/sys/unix"}

	rooms = map[string]struct{ code, tests []string }{
		// the vocabulary
		"packet":            {nil, []string{"packet/packettest", "github.com/gopacket/gopacket/..."}},
		"packet/packettest": {[]string{"packet"}, []string{"github.com/gopacket/gopacket/..."}},
		"control":           {nil, nil},
		"backend":           {[]string{"control", "go.uber.org/zap"}, nil},

		// the engine
		"dataplane": {[]string{"packet", "github.com/gaissmai/bart"}, []string{"packet/packettest", "encap/vxlan"}},
	}
)

// TestRooms must run with -count=1: go test caches a result that depends on other packages' sources.
func TestRooms(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		room := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, listed := rooms[room]
		if !listed {
			t.Errorf("%s is not in the table of rooms: decide what it may import and list it", room)
			continue
		}
		seen[room] = true
		check(t, room, "", p.Imports, allowed.code)
		check(t, room, " in tests", p.TestImports, allowed.code, allowed.tests, ground)
		check(t, room, " in tests", p.XTestImports, allowed.code, allowed.tests, ground)
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("%s is in the table but not in the house", room)
		}
	}
}

func check(t *testing.T, room, where string, imports []string, allowed ...[]string) {
	for _, imp := range imports {
		name := strings.TrimPrefix(imp, module+"/")
		first, _, _ := strings.Cut(imp, "/")
		ours, thirdParty := name != imp, strings.Contains(first, ".")
		if !ours && !thirdParty || name == room {
			continue
		}
		if !slices.ContainsFunc(allowed, func(list []string) bool { return permits(list, name) }) {
			t.Errorf("%s may not import %s%s", room, name, where)
		}
	}
}

// permits says whether the list holds the name, or a "prefix/..." above it.
func permits(list []string, name string) bool {
	return slices.ContainsFunc(list, func(a string) bool {
		above, tree := strings.CutSuffix(a, "/...")
		return a == name || tree && (name == above || strings.HasPrefix(name, above+"/"))
	})
}

// TestPermits plants violations: a check that cannot fail keeps no house.
func TestPermits(t *testing.T) {
	list := []string{"packet", "example.org/lib/..."}
	for name, want := range map[string]bool{
		"packet": true, "packet/packettest": false, "packe": false,
		"example.org/lib": true, "example.org/lib/sub": true, "example.org/library": false,
	} {
		if got := permits(list, name); got != want {
			t.Errorf("permits(%q) = %v, want %v", name, got, want)
		}
	}
}
