// Package controltest is the suite every control source must pass: scripts of what happens to a
// cluster and what a source must then publish. The scripts are in testdata, one command a line:
//
//	set NAME ENDPOINT,… PREFIX,…   put a node into the cluster (seen by sources at commit)
//	unset NAME                     take it out
//	commit                         make it so
//	break                          make the cluster's data unreadable; the next commit mends it
//	start NAME                     commit, and run a source for this node
//	start-fails NAME               commit; a source for this node must refuse to run
//	expect self NAME ENDPOINTS PREFIXES, expect node …, expect problem NAME|source, expect problems 0
//
// Consecutive expect lines describe one State: all of its nodes, no others. Problems are counted
// only where a line speaks of them.
package controltest

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/control"
)

//go:embed testdata/*.txt
var scripts embed.FS

// Network is the overlay the scripts are about.
func Network() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
}

// Cluster is where the source under test reads from, under the suite's control.
type Cluster interface {
	Commit(nodes []control.Node) // make exactly these nodes the cluster, sorted by name
	Break()                      // make the data unreadable
	Source() control.Source
}

// Run runs every script, each on a cluster of its own.
func Run(t *testing.T, newCluster func(t *testing.T) Cluster) {
	files, err := scripts.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(f.Name(), ".txt"), func(t *testing.T) {
			text, err := scripts.ReadFile(path.Join("testdata", f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			r := &runner{t: t, cluster: newCluster(t), nodes: map[string]control.Node{}, states: make(chan control.State, 64)}
			r.run(strings.Split(string(text), "\n"))
		})
	}
}

// patience bounds how long a source may take to publish a change; a working one takes far less.
const patience = 20 * time.Second

type runner struct {
	t       *testing.T
	cluster Cluster
	nodes   map[string]control.Node
	states  chan control.State
	last    *control.State
	line    int
}

func (r *runner) run(lines []string) {
	for r.line = 0; r.line < len(lines); r.line++ {
		f := strings.Fields(lines[r.line])
		switch {
		case len(f) == 0 || f[0] == "#":
		case f[0] == "set":
			r.nodes[f[1]] = r.node(f[1:])
		case f[0] == "unset":
			delete(r.nodes, f[1])
		case f[0] == "commit":
			r.commit()
		case f[0] == "break":
			r.cluster.Break()
		case f[0] == "start":
			r.commit()
			r.start(f[1])
		case f[0] == "start-fails":
			r.commit()
			r.startFails(f[1])
		case f[0] == "expect":
			want := [][]string{f[1:]}
			for r.line+1 < len(lines) && strings.HasPrefix(lines[r.line+1], "expect ") {
				r.line++
				want = append(want, strings.Fields(lines[r.line])[1:])
			}
			r.expect(want)
		default:
			r.t.Fatalf("line %d: unknown command %q", r.line+1, f[0])
		}
	}
}

func (r *runner) node(f []string) control.Node {
	n := control.Node{Name: f[0]}
	for _, s := range strings.Split(f[1], ",") {
		n.Endpoints = append(n.Endpoints, netip.MustParseAddr(s))
	}
	for _, s := range strings.Split(f[2], ",") {
		n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(s))
	}
	return n
}

func (r *runner) commit() {
	var nodes []control.Node
	for _, n := range r.nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b control.Node) int { return strings.Compare(a.Name, b.Name) })
	r.cluster.Commit(nodes)
}

// start runs the source until the test ends; then it must return without an error.
func (r *runner) start(self string) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	source := r.cluster.Source()
	go func() {
		done <- source.Run(ctx, control.Node{Name: self}, func(s control.State) { r.states <- s })
	}()
	r.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				r.t.Errorf("Run returned %v at the end of its context", err)
			}
		case <-time.After(patience):
			r.t.Error("Run did not return at the end of its context")
		}
	})
}

func (r *runner) startFails(self string) {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	err := r.cluster.Source().Run(ctx, control.Node{Name: self}, func(s control.State) {
		r.t.Errorf("line %d: published %+v", r.line+1, s)
	})
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		r.t.Errorf("line %d: Run returned %v, want a refusal", r.line+1, err)
	}
}

// expect waits for a State that is all that the lines say.
func (r *runner) expect(want [][]string) {
	r.t.Helper()
	deadline := time.After(patience)
	missing := "nothing was published"
	if r.last != nil {
		if missing = r.differs(*r.last, want); missing == "" {
			return
		}
	}
	for {
		select {
		case s := <-r.states:
			r.last = &s
			if missing = r.differs(s, want); missing == "" {
				return
			}
		case <-deadline:
			r.t.Fatalf("line %d: %s; the last State is %+v", r.line+1, missing, r.last)
		}
	}
}

func (r *runner) differs(s control.State, want [][]string) string {
	nodes := map[string]bool{}
	for _, w := range want {
		switch w[0] {
		case "self":
			if got := describe(s.Self); got != strings.Join(w[1:], " ") {
				return fmt.Sprintf("self is %q, want %q", got, w[1:])
			}
		case "node":
			nodes[w[1]] = true
			i := slices.IndexFunc(s.Nodes, func(n control.Node) bool { return n.Name == w[1] })
			if i < 0 || describe(s.Nodes[i]) != strings.Join(w[1:], " ") {
				return fmt.Sprintf("no node %q", w[1:])
			}
		case "problem":
			name := strings.TrimPrefix(w[1], "source")
			if !slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return p.Node == name && p.Text != "" }) {
				return "no problem of " + w[1]
			}
		case "problems":
			if len(s.Problems) > 0 {
				return "there are problems"
			}
		default:
			return "unknown expectation " + w[0]
		}
	}
	if len(nodes) != len(s.Nodes) {
		return fmt.Sprintf("%d nodes, want %d", len(s.Nodes), len(nodes))
	}
	if !slices.IsSortedFunc(s.Nodes, func(a, b control.Node) int { return strings.Compare(a.Name, b.Name) }) {
		return "the nodes are not sorted by name"
	}
	if s.AsOf.IsZero() || time.Since(s.AsOf) < 0 {
		return "AsOf is not a time of the past"
	}
	return ""
}

// describe writes a node as the scripts do. Prefixes of a State are sorted, endpoints are in the
// node's order of preference.
func describe(n control.Node) string {
	var endpoints, prefixes []string
	for _, a := range n.Endpoints {
		endpoints = append(endpoints, a.String())
	}
	for _, p := range n.Prefixes {
		prefixes = append(prefixes, p.String())
	}
	return strings.Join([]string{n.Name, strings.Join(endpoints, ","), strings.Join(prefixes, ",")}, " ")
}
