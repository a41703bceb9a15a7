package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/api"
	"weft/catalog/mode"
	"weft/internal/config"
	"weft/internal/kernel"
	"weft/node/metrics"
	"weft/packet"
	"weft/perf/probe"
	"weft/perf/watch"
	"weft/policy"
)

const reference = "../../docs/reference.md"

var update = flag.Bool("update", false, "write what is made from the program into docs/reference.md")

// section returns the text of docs/reference.md below a heading, up to the next one that is not
// below it.
func section(t *testing.T, heading string) string { return sectionOf(t, reference, heading) }

func sectionOf(t *testing.T, file, heading string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", file, heading)
	}
	level := strings.Index(heading, " ")
	if end := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, level)).FindStringIndex(rest); end != nil {
		rest = rest[:end[0]]
	}
	return rest
}

// table returns the rows of the first table of a section, without its head, cell by cell.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	lines := strings.Split(section(t, heading), "\n")
	first := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "|") })
	if first < 0 {
		t.Fatalf("no table below %q", heading)
	}
	for _, l := range lines[first+2:] {
		if !strings.HasPrefix(l, "|") {
			break
		}
		cells := strings.Split(strings.Trim(l, "| "), " | ")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		rows = append(rows, cells)
	}
	return rows
}

func column(rows [][]string, i int) (cells []string) {
	for _, r := range rows {
		cells = append(cells, r[i])
	}
	return cells
}

func TestReferenceConfiguration(t *testing.T) {
	rows := table(t, "## weft.yaml")
	var want [][]string
	for _, k := range config.Keys() {
		def := k.Default
		switch k.Name {
		case "network.prefixes":
			def = "required"
		case "mode":
			def = mode.Default
		}
		want = append(want, []string{k.Name, def})
	}
	for i, w := range want {
		if i >= len(rows) || !slices.Equal(rows[i][:2], w) {
			t.Fatalf("row %d of the table is %q, want %q", i+1, rows[min(i, len(rows)-1)], w)
		}
	}
	if len(rows) != len(want) {
		t.Errorf("%d rows for %d keys", len(rows), len(want))
	}
}

func TestReferenceDrops(t *testing.T) {
	var want []string
	for d := packet.Alive + 1; d < packet.NumDrops; d++ {
		want = append(want, d.String())
	}
	if got := column(table(t, "## Drops"), 0); !slices.Equal(got, want) {
		t.Errorf("the table has %q, want %q", got, want)
	}
}

// Every port that a default names is in the table.
func TestReferencePorts(t *testing.T) {
	rows := table(t, "## Ports and firewall")
	holds := func(port, word string) {
		t.Helper()
		if !slices.ContainsFunc(rows, func(r []string) bool {
			return slices.Contains(strings.FieldsFunc(r[0], func(c rune) bool { return c == ' ' || c == ',' }), port) && strings.Contains(strings.Join(r, " ")+"`", word) // table trims the last one
		}) {
			t.Errorf("no row for port %s of %s", port, word)
		}
	}
	for _, m := range mode.All() {
		if m.Port != 0 {
			holds(fmt.Sprint(m.Port), "network.port")
		}
	}
	for _, k := range config.Keys() {
		if port := regexp.MustCompile(`^(?:.*:)?(\d{4,5})\W*$`).FindStringSubmatch(k.Default); port != nil && k.Name != "network.vni" {
			holds(port[1], k.Name)
		}
	}
	holds(fmt.Sprint(probe.DefaultPort), "weft bench run")
}

func TestReferenceExitCodes(t *testing.T) {
	var want []string
	for _, code := range []int{exitDone, exitFailed, exitUsage, exitUnsupported, exitUnreachable, exitCorrupt, exitInterrupted} {
		want = append(want, fmt.Sprint(code))
	}
	if got := column(table(t, "## Exit codes"), 0); !slices.Equal(got, want) {
		t.Errorf("the table has %q, want %q", got, want)
	}
}

func TestReferenceAPI(t *testing.T) {
	handler := api.Handler(silent{}, silent{})
	rows := table(t, "## API")
	const question = "?src=10.0.0.1&dst=10.0.0.2&protocol=1&sport=0&dport=0&size=64"
	for _, r := range rows {
		method, path, _ := strings.Cut(r[0], " ")
		if path == "/v1/path" || path == "/v1/probe" {
			path += question
		}
		body := "{}"
		if path == "/v1/pods/gc" {
			body = `{"valid": []}`
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d", r[0], w.Code)
		}
	}
	for _, file := range []string{"server.go", "podserver.go", "trace.go", "policy.go", "bgp.go", "mesh.go"} {
		source, err := os.ReadFile("../../api/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"((GET|POST) /v1/[a-z/]+)"`).FindAllStringSubmatch(string(source), -1) {
			if !slices.Contains(column(rows, 0), m[1]) {
				t.Errorf("%s is not in the table", m[1])
			}
		}
	}
}

// silent is a daemon that has nothing to say.
type silent struct{}

func (silent) Status() api.Status                              { return api.Status{} }
func (silent) Nodes() []api.Node                               { return nil }
func (silent) Choice(string) (api.Choice, bool)                { return api.Choice{}, false }
func (silent) Peers() []api.Peer                               { return nil }
func (silent) Routes() []api.Route                             { return nil }
func (silent) Lanes() []api.Lane                               { return nil }
func (silent) Flows() []api.Flow                               { return nil }
func (silent) BGP() api.BGP                                    { return api.BGP{} }
func (silent) Drain(bool) error                                { return nil }
func (silent) Mesh() api.Mesh                                  { return api.Mesh{} }
func (silent) Forget(context.Context, api.ForgetRequest) error { return nil }
func (silent) Trace(_ context.Context, _ string, started func(), _ func(api.Traced) error) error {
	started()
	return nil
}
func (silent) Path(api.PathQuestion) (api.Path, error)            { return api.Path{}, nil }
func (silent) Policies() api.Policies                             { return api.Policies{} }
func (silent) Explain(_, _, _ string) ([]policy.Explained, error) { return nil, nil }
func (silent) Probe(api.PathQuestion) (string, error)             { return "", nil }
func (silent) Attach(context.Context, api.AttachRequest) (api.AttachResult, error) {
	return api.AttachResult{}, nil
}
func (silent) Announce(context.Context, api.AnnounceRequest) error { return nil }
func (silent) Detach(context.Context, api.DetachRequest) error     { return nil }
func (silent) Check(context.Context, api.CheckRequest) error       { return nil }
func (silent) GC(context.Context, api.GCRequest) error             { return nil }
func (silent) Pods() ([]api.Pod, error)                            { return nil, nil }
func (silent) PodStatus() api.PodStatus                            { return api.PodStatus{} }
func (silent) Capture(context.Context, api.CaptureRequest, io.Writer, func() error) (s api.CaptureSummary, err error) {
	return s, nil
}

// made marks what -update writes: all from here to the section's end.
const made = "<!-- made by: go test ./cmd/weft -run Reference -update -->\n"

// holdMade compares the made part of a section with what it should be, or writes it.
func holdMade(t *testing.T, file, heading, want string) {
	t.Helper()
	have := sectionOf(t, file, heading)
	intro, old, found := strings.Cut(have, made)
	if !found {
		t.Fatalf("no line %q below %q", made, heading)
	}
	if strings.TrimSpace(old) == strings.TrimSpace(want) {
		return
	}
	if !*update {
		t.Fatalf("%s, %q, differs from the program: go test ./cmd/weft -run Reference -update, and look at the change", file, heading)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	replaced := strings.Replace(string(text), heading+"\n"+have, heading+"\n"+intro+made+"\n"+strings.TrimSpace(want)+"\n\n", 1)
	if err := os.WriteFile(file, []byte(replaced), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReferenceModes(t *testing.T) {
	holdMade(t, reference, "### Modes", modesReference(mode.All()))
	holdMade(t, "../../README.md", "## Modes", modesREADME(mode.All()))
}

// modesReference says of each mode what one has to know to run it.
func modesReference(modes []mode.Mode) string {
	var b strings.Builder
	b.WriteString("| mode | inside → outside | on the wire | UDP port | forwards | needs of the kernel | `features` |\n|---|---|---|---|---|---|---|\n")
	for _, m := range modes {
		forwards, port := "the kernel", "none"
		if m.Lanes() {
			forwards = "the daemon; can seal"
		}
		if m.PastKernel() {
			forwards += "; past nftables"
		}
		if m.Port != 0 {
			port = fmt.Sprint(m.Port)
		}
		var needs []string
		for _, n := range m.Needs {
			needs = append(needs, kernel.Ability(n).String())
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s |\n", m.Name, m.About, m.Wire, port, forwards, strings.Join(needs, ", "), strings.Join(m.Features, ", "))
	}
	return b.String()
}

// modesREADME says of each mode what it is for.
func modesREADME(modes []mode.Mode) string {
	var b strings.Builder
	b.WriteString("| mode | inside → outside | stands for |\n|---|---|---|\n")
	for _, m := range modes {
		name := "`" + m.Name + "`"
		if m.Name == mode.Default {
			name += " (default)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, m.About, m.For)
	}
	return b.String()
}

func TestReferenceMetrics(t *testing.T) {
	const head = "| metric | kind | labels | meaning |\n|---|---|---|---|\n"
	line := func(name, kind string, labels []string, help string) string {
		words := ""
		if len(labels) > 0 {
			words = "`" + strings.Join(labels, "`, `") + "`"
		}
		return fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, kind, words, help)
	}
	daemon, bench := head, head
	for _, m := range metrics.Metrics() {
		daemon += line(m.Name, m.Kind, m.Labels, m.Help)
	}
	for _, m := range watch.Metrics() {
		bench += line(m.Name, m.Kind, m.Labels, m.Help)
	}
	holdMade(t, reference, "## Metrics", daemon)
	holdMade(t, reference, "## Metrics of bench", bench)
}

func TestReferenceCommands(t *testing.T) { holdMade(t, reference, "## Commands", commandReference()) }

// commandReference describes every command that does something.
func commandReference() string {
	var b strings.Builder
	eachCommand(newRoot(), func(c *cobra.Command) {
		if c.RunE == nil || c.Hidden {
			return
		}
		fmt.Fprintf(&b, "### %s\n\n%s.\n", c.CommandPath(), c.Short)
		var rows strings.Builder
		c.Flags().VisitAll(func(f *pflag.Flag) {
			name := "--" + f.Name
			if f.Shorthand != "" {
				name = "-" + f.Shorthand + ", " + name
			}
			def := ""
			if f.DefValue != "" {
				def = "`" + f.DefValue + "`"
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", "or"))
		})
		if rows.Len() > 0 {
			fmt.Fprintf(&b, "\n| flag | default | meaning |\n|---|---|---|\n%s", rows.String())
		}
		b.WriteString("\n")
	})
	return b.String()
}
