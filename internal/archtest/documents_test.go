package archtest

import (
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestMapHasEveryRoom: the map of ARCHITECTURE.md names every package.
func TestMapHasEveryRoom(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "ARCHITECTURE.md"), "## The rooms")
	rooms, _, found := strings.Cut(rest, "\n## ")
	if !found {
		t.Fatal("ARCHITECTURE.md has no map of rooms")
	}
	for room := range roomsByName() {
		name := path.Base(room)
		if !regexp.MustCompile(`(^|[^\w-])` + regexp.QuoteMeta(name) + `/`).MatchString(rooms) {
			t.Errorf("the map does not name %s", room)
		}
	}
}

// roomsByName are the rooms without those inside a part: its affair.
func roomsByName() map[string]bool {
	all := map[string]bool{}
	for room := range rooms {
		if top, _, _ := strings.Cut(room, "/"); top != "xdp" && strings.Count(room, "/") < 2 {
			all[room] = true
		}
	}
	return all
}

// TestMakefile: .PHONY names the targets that there are.
func TestMakefile(t *testing.T) {
	text := read(t, "Makefile")
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z]+):`).FindAllStringSubmatch(text, -1) {
		targets = append(targets, m[1])
	}
	phony := regexp.MustCompile(`(?m)^\.PHONY: (.*)$`).FindStringSubmatch(text)
	if phony == nil || !slices.Equal(strings.Fields(phony[1]), targets) {
		t.Errorf(".PHONY is %q, the targets are %q", phony, targets)
	}
}

// TestSkips: only nettest skips tests, so that scripts/test can say that nothing may be missing (WEFT_TEST_NO_SKIP): what it still leaves out asks for
// scripts/test-long by name.
func TestSkips(t *testing.T) {
	skips := regexp.MustCompile(`\b[a-z]+\.Skip(f|Now)?\(`)
	allowed := []string{"internal/nettest/testing.go", "internal/kernel/kernel_test.go"} // nettest is built on kernel
	err := fs.WalkDir(os.DirFS("../.."), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || slices.Contains(allowed, file) {
			return err
		}
		for _, call := range skips.FindAllString(read(t, file), -1) {
			if !strings.HasPrefix(call, "nettest.") && !strings.HasPrefix(call, "p.") {
				t.Errorf("%s: %s: skip by nettest's RequireTool, RequireLong, RequireGiven or Skip", file, call)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
