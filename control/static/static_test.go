package static_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"weft/control"
	"weft/control/controltest"
	"weft/control/static"
	"weft/internal/config/strict"
)

func yaml(nodes []control.Node) string {
	var b strings.Builder
	b.WriteString("nodes:\n")
	for _, n := range nodes {
		fmt.Fprintf(&b, "- name: %s\n  endpoints:\n", n.Name)
		for _, a := range n.Endpoints {
			fmt.Fprintf(&b, "  - %q\n", a)
		}
		b.WriteString("  prefixes:\n")
		for _, p := range n.Prefixes {
			fmt.Fprintf(&b, "  - %q\n", p)
		}
		if n.PublicKey != "" {
			fmt.Fprintf(&b, "  public_key: %q\n", n.PublicKey)
		}
		for i, w := range n.Ways {
			if i == 0 {
				b.WriteString("  ways:\n")
			}
			fmt.Fprintf(&b, "  - %q\n", w)
		}
	}
	return b.String()
}

// writers are the ways in which people and programs change a file.
var writers = map[string]func(t *testing.T, file, text string){
	"in place": func(t *testing.T, file, text string) { write(t, file, text) },
	"rename": func(t *testing.T, file, text string) { // vi, sed -i, renameio
		write(t, file+"~", text)
		must(t, os.Rename(file+"~", file))
	},
	"config map": func(t *testing.T, file, text string) { // kubelet: nodes.yaml → ..data/nodes.yaml, ..data → a dated folder
		dir := filepath.Dir(file)
		dated, err := os.MkdirTemp(dir, "..dated")
		must(t, err)
		write(t, filepath.Join(dated, filepath.Base(file)), text)
		must(t, os.Symlink(filepath.Base(dated), filepath.Join(dir, "..tmp")))
		must(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
			must(t, os.Symlink(filepath.Join("..data", filepath.Base(file)), file))
		}
	},
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must(t, os.WriteFile(file, []byte(text), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type cluster struct {
	t     *testing.T
	file  string
	write func(t *testing.T, file, text string)
}

func (c *cluster) Commit(nodes []control.Node) { c.write(c.t, c.file, yaml(nodes)) }
func (c *cluster) Break()                      { c.write(c.t, c.file, "nodes: [{name: a,") }
func (c *cluster) Source() control.Source {
	return static.New(c.file, controltest.Network(), zaptest.NewLogger(c.t))
}

func TestConformance(t *testing.T) {
	for name, w := range writers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			controltest.Run(t, controltest.Written, func(t *testing.T) controltest.Cluster {
				return &cluster{t: t, file: filepath.Join(t.TempDir(), "nodes.yaml"), write: w}
			})
		})
	}
}

func source(t *testing.T, text string) (*static.Source, string) {
	file := filepath.Join(t.TempDir(), "nodes.yaml")
	write(t, file, text)
	return static.New(file, controltest.Network(), zaptest.NewLogger(t)), file
}

func TestRead(t *testing.T) {
	key := "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	s, file := source(t, `nodes:
  - {name: a, endpoints: [192.0.2.1, "2001:db8::1"], prefixes: [10.244.1.0/24, "fd00:10:244:1::/64"], public_key: ""}
  - {name: b, endpoints: [192.0.2.2], prefixes: [10.244.2.0/24], public_key: "`+key+`"}
  - {name: c, endpoints: [192.0.2.3, 192.0.2], prefixes: [10.244.3.0/24, 10.244.4.0/33], public_key: abc}
  - {name: "", endpoints: [192.0.2.4], prefixes: [10.244.4.0/24]}
  - {name: e, endpoints: [192.0.2.5]}
`)
	st, err := read(s)
	must(t, err)
	if st.Self.Endpoints[1] != netip.MustParseAddr("2001:db8::1") || len(st.Nodes) != 2 || st.Nodes[0].PublicKey != key || st.Nodes[1].PublicKey != "" {
		t.Errorf("state %+v", st)
	}
	for i, want := range []string{
		`c: ` + file + `:4: "192.0.2" is not an address`,
		`c: ` + file + `:4: "10.244.4.0/33" is not a prefix`,
		`c: ` + file + `:4: public_key is left out, it is not 32 bytes in base64`,
		`: ` + file + `:5: the node is left out: a node needs a name`,
		`e: the node is left out, it has no usable prefix`,
	} {
		if got := st.Problems[i].Node + ": " + st.Problems[i].Text; !strings.HasPrefix(got, want) {
			t.Errorf("problem %q, want %q", got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"empty":         {"", "the file is empty"},
		"no nodes":      {"nodes: []", `this node, "a", is not among the 0 nodes`},
		"no list":       {"{}", "has no list `nodes:`"},
		"a list":        {"- a", "is a list, wants keys: nodes"},
		"unknown key":   {"nodes:\n- {name: a, prefix: [10.244.1.0/24]}", ":2: nodes[0].prefix: unknown key: did you mean prefixes?"},
		"text as list":  {"nodes:\n- {name: a, endpoints: 192.0.2.1}", ":2: nodes[0].endpoints: is the text \"192.0.2.1\", wants a list"},
		"self left out": {"nodes:\n- {name: a, endpoints: [192.0.2.1], prefixes: [10.244.1.0/33]}", ":2: \"10.244.1.0/33\" is not a prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			s, file := source(t, c.in)
			_, err := read(s)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestSlip: a slip of the pen in one line harms that line, whatever it says and wherever it stands.
func TestSlip(t *testing.T) {
	const good = `nodes:
  - {name: a, endpoints: [192.0.2.1], prefixes: [10.244.1.0/24], public_key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}
  - {name: b, endpoints: [192.0.2.2], prefixes: [10.244.2.0/24]}
  - {name: c, endpoints: [192.0.2.3], prefixes: [10.244.3.0/24]}
  - {name: d, endpoints: [192.0.2.4], prefixes: [10.244.4.0/24]}
`
	for name, c := range map[string]struct{ old, slip, harmed string }{
		"another's prefix":          {"10.244.2.0/24", "10.244.3.0/24", "b"},
		"and self's":                {"10.244.3.0/24", "10.244.1.0/24", "c"},
		"half of another's":         {"10.244.2.0/24", "10.244.3.128/25", "b"},
		"many others'":              {"10.244.2.0/24", "10.244.0.0/21", "b"},
		"another's endpoint":        {"192.0.2.2", "192.0.2.4", "b"},
		"self's endpoint":           {"192.0.2.3", "192.0.2.1", "c"},
		"another's name":            {"name: b", "name: c", "b"},
		"an endpoint that is a pod": {"192.0.2.3", "10.244.9.9", "c"},
		"self's public key":         {"[10.244.2.0/24]", "[10.244.2.0/24], public_key: \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"", "b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, file := source(t, good)
			states := make(chan control.State, 16)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.Announce(control.Node{Name: "a"})
			go s.Run(ctx, func(s control.State) { states <- s })
			before := next(t, states)
			write(t, file, strings.Replace(good, c.old, c.slip, 1))
			after := next(t, states)
			left := append([]control.Node{after.Self}, after.Nodes...)
			for _, n := range append([]control.Node{before.Self}, before.Nodes...) {
				same := slices.ContainsFunc(left, n.Equal)
				if same == (n.Name == c.harmed) {
					t.Errorf("%s is as before: %v; %+v, problems %v", n.Name, same, left, after.Problems)
				}
			}
			if len(after.Problems) == 0 {
				t.Error("nothing is said")
			}
		})
	}
}

// Without a file the node is alone, says so, and joins the cluster when the file appears.
func TestAlone(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	file := filepath.Join(t.TempDir(), "nodes.yaml")
	states := make(chan control.State, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	self := control.Node{Name: "a", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}
	src := static.New(file, controltest.Network(), zap.New(core))
	src.Announce(self)
	go func() { done <- src.Run(ctx, func(s control.State) { states <- s }) }()
	st := next(t, states)
	if len(st.Nodes) != 0 || fmt.Sprint(st.Self.Prefixes) != fmt.Sprint(controltest.Network()) || fmt.Sprint(st.Self.Endpoints) != "[192.0.2.9]" {
		t.Errorf("alone: %+v", st)
	}
	if logs.FilterMessageSnippet("no peers").Len() != 1 {
		t.Errorf("the log does not say it: %v", logs.All())
	}
	src.Announce(control.Node{Name: "a", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.10")}})
	if now := next(t, states); fmt.Sprint(now.Self.Endpoints) != "[192.0.2.10]" || now.Revision != st.Revision+1 {
		t.Errorf("after another word: %+v", now)
	}
	write(t, file, "nodes: [{name: a, endpoints: [192.0.2.1], prefixes: [10.244.1.0/24]}, {name: b, endpoints: [192.0.2.2], prefixes: [10.244.2.0/24]}]")
	for st = next(t, states); len(st.Nodes) != 1; st = next(t, states) {
	}
	if fmt.Sprint(st.Self.Prefixes) != "[10.244.1.0/24]" {
		t.Errorf("after joining: %+v", st)
	}
	// Gone is not alone: taking over the whole network because of a deleted file would be a disaster.
	must(t, os.Remove(file))
	for st = next(t, states); len(st.Problems) == 0; st = next(t, states) {
	}
	if len(st.Nodes) != 1 || !strings.Contains(st.Problems[0].Text, "does not exist any more") {
		t.Errorf("after removal: %+v", st)
	}
	cancel()
	must(t, <-done)
}

func next(t *testing.T, states <-chan control.State) control.State {
	t.Helper()
	select {
	case s := <-states:
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("no State was published")
		panic("unreachable")
	}
}

// Writing the same again, or something beside it, publishes nothing; the next real change does.
func TestUnchangedIsQuiet(t *testing.T) {
	const one = "nodes: [{name: a, endpoints: [192.0.2.1], prefixes: [10.244.1.0/24]}]"
	s, file := source(t, one)
	states := make(chan control.State, 16)
	s.Announce(control.Node{Name: "a"})
	go s.Run(t.Context(), func(s control.State) { states <- s })
	next(t, states)
	write(t, file, one)
	write(t, file+".swp", "x")
	write(t, file, strings.Replace(one, "192.0.2.1", "192.0.2.7", 1))
	if st := next(t, states); fmt.Sprint(st.Self.Endpoints) != "[192.0.2.7]" {
		t.Errorf("published %+v", st)
	}
	if len(states) > 0 {
		t.Errorf("published again: %+v", <-states)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("nodes: [{name: a, endpoints: [192.0.2.1], prefixes: [10.244.1.0/24]}]")
	f.Add("nodes:\n- {name: a, endpoints: [\"2001:db8::1\"], prefixes: [\"fd00:10:244:1::/64\"], public_key: \"x\"}\n- 7")
	f.Add("nodes: {a: b}")
	file := filepath.Join(f.TempDir(), "nodes.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := read(static.New(file, controltest.Network(), zap.NewNop()))
		var mistakes strict.Errors
		switch {
		case err == nil && (st.Self.Name != "a" || len(st.Self.Endpoints) == 0 || len(st.Self.Prefixes) == 0):
			t.Errorf("%q gives self %+v", text, st.Self)
		case errors.As(err, &mistakes) && len(mistakes) == 0:
			t.Errorf("%q: an error without a mistake", text)
		}
	})
}

// read is Read for node a.
func read(s *static.Source) (control.State, error) {
	s.Announce(control.Node{Name: "a"})
	return s.Read()
}
