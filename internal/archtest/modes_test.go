package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"weft/catalog/mode"
)

// spoken are files that name modes because somebody has to choose some.
var spoken = map[string]string{
	"catalog/catalog.go":        "makes them",
	"catalog/mode/mode.go":      "lists them",
	"perf/contender/presets.go": "says which mode stands for which product",
	"cmd/weft/lab.go":           "what `weft lab run` compares where nobody says",
}

// TestModesAreListedOnce: no other file of the program names a mode. Names that are words for other things as well, such as udp and
// vxlan, cannot be told from those.
func TestModesAreListedOnce(t *testing.T) {
	looked := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		file := filepath.ToSlash(strings.TrimPrefix(path, "../../"))
		if err != nil || d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") || spoken[file] != "" {
			return err
		}
		looked++
		for _, text := range texts(t, path) {
			for _, name := range mode.Names(mode.All()) {
				if strings.Contains(name, "-") && names(text, name) {
					t.Errorf("%s: %q names mode %s: have it from catalog/mode", file, text, name)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked < 100 {
		t.Errorf("only %d files were looked at", looked)
	}
	if !names("use mode tun-gso: it does", "tun-gso") || names("flannel-host-gw", "host-gw") || names("xdp-lib-rx", "xdp-lib") {
		t.Error("names are not found, or found where there are none")
	}
}

// names says whether a text holds a name as a word.
func names(text, name string) bool {
	for rest := text; ; {
		i := strings.Index(rest, name)
		if i < 0 {
			return false
		}
		word := func(b byte) bool { return b == '-' || b >= 'a' && b <= 'z' || b >= '0' && b <= '9' }
		end := i + len(name)
		if (i == 0 || !word(rest[i-1])) && (end == len(rest) || !word(rest[end])) {
			return true
		}
		rest = rest[end:]
	}
}

// texts returns the string literals of a file.
func texts(t *testing.T, file string) (all []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			if s, err := strconv.Unquote(l.Value); err == nil {
				all = append(all, s)
			}
		}
		return true
	})
	return all
}
