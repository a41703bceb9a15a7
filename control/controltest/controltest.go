// Package controltest is the suite every control source must pass: scripts of what happens to a
// cluster and what a source must then publish. The scripts are in testdata, one command a line:
//
//	set NAME ENDPOINT,… PREFIX,…   put a node into the cluster (seen by sources at commit)
//	key NAME KEY                   (after set) its public key is made of this one letter
//	ways NAME WAY,…                (after set) it takes packets by these ways
//	mac NAME OTHER                 (after set) it announces the VTEP MAC of the node of that other name
//	unset NAME                     take it out
//	commit                         make it so
//	break                          make the cluster's data unreadable; the next commit mends it
//	fill COUNT                     put that many nodes n0, n1, … into the cluster, with IPv6 prefixes
//	start NAME                     commit, and run a source for this node
//	stop                           end that source; what it left in the cluster stays
//	start-fails NAME               commit; a source for this node must refuse to run
//	announce ENDPOINT,…            the running source's node has these endpoints, a key, a feature and a way to tell by now
//	expect announced               the node itself has that key, that feature and that way in its State
//	expect takes NAME WAY,…        that node takes packets by exactly these ways
//	expect self NAME ENDPOINTS PREFIXES, expect node …, expect problem NAME|source, expect problems 0
//	expect nodes COUNT             so many other nodes; the node lines are then not all of them
//	only written                   (first) the script is for sources whose cluster is written down by a
//	                               person, self included, and not for those where nodes register
//
// Besides, every State must have a Revision by the contract: the last one's where Self and Nodes are the same, else a higher one.
//
// Consecutive expect lines describe one State: all of its nodes, no others. Problems are counted
// only where a line speaks of them.
package controltest

import (
	"context"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// Kind says who tells the cluster about a node.
type Kind string

// Kinds of source.
const (
	Written    Kind = "written"    // a person
	Registered Kind = "registered" // the node itself, when it joins
)

// Run runs every script for this kind of source, each on a cluster of its own. A cluster of
// registered nodes is told by Commit about the node under test as well; from Source on that node is
// the source's business.
func Run(t *testing.T, kind Kind, newCluster func(t *testing.T) Cluster) {
	files, err := scripts.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := scripts.ReadFile(path.Join("testdata", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		if only, ok := strings.CutPrefix(lines[0], "only "); ok {
			if Kind(only) != kind {
				continue
			}
			lines[0] = ""
		}
		t.Run(strings.TrimSuffix(f.Name(), ".txt"), func(t *testing.T) {
			r := &runner{t: t, cluster: newCluster(t), nodes: map[string]control.Node{}, states: make(chan control.State, 64)}
			r.run(lines)
		})
	}
}

// patience bounds how long a source may take to publish a change; a working one takes far less.
const patience = time.Minute

type runner struct {
	t       *testing.T
	cluster Cluster
	nodes   map[string]control.Node
	states  chan control.State
	last    *control.State
	before  control.State // the last one published by the running source, for its Revision
	source  control.Source
	self    control.Node // as it announces itself
	line    int
	stop    func() // ends the running source; may be called again
}

func (r *runner) run(lines []string) {
	for r.line = 0; r.line < len(lines); r.line++ {
		f := strings.Fields(lines[r.line])
		switch {
		case len(f) == 0 || f[0] == "#":
		case f[0] == "set":
			r.nodes[f[1]] = r.node(f[1:])
		case f[0] == "key":
			n := r.nodes[f[1]]
			n.PublicKey = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(f[2], 32)))
			r.nodes[f[1]] = n
		case f[0] == "ways":
			n := r.nodes[f[1]]
			n.Ways = waysOf(f[2])
			r.nodes[f[1]] = n
		case f[0] == "mac":
			n := r.nodes[f[1]]
			n.MAC = control.VTEPMAC(f[2])
			r.nodes[f[1]] = n
		case f[0] == "unset":
			delete(r.nodes, f[1])
		case f[0] == "commit":
			r.commit()
		case f[0] == "break":
			r.cluster.Break()
		case f[0] == "fill":
			r.fill(f[1])
		case f[0] == "stop":
			r.stop()
			r.last, r.states = nil, make(chan control.State, 64)
		case f[0] == "start":
			r.commit()
			r.start(f[1])
		case f[0] == "announce":
			r.self = r.node([]string{r.self.Name, f[1], ""})
			r.self.PublicKey, r.self.Features, r.self.MAC, r.self.Ways = announcedKey, []string{announcedFeature}, announcedMAC, waysOf(announcedWays)
			r.source.Announce(r.self)
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
	for s := range strings.FieldsFuncSeq(f[2], func(r rune) bool { return r == ',' }) {
		n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(s))
	}
	return n
}

func waysOf(text string) (ways []control.Way) {
	for t := range strings.SplitSeq(text, ",") {
		var w control.Way
		_ = w.UnmarshalText([]byte(t)) // takes anything
		ways = append(ways, w)
	}
	return ways
}

// What `announce` announces besides endpoints.
const (
	announcedKey     = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	announcedFeature = "rco"
	announcedWays    = "sealed:8473,vxlan:4789"
)

var announcedMAC = control.MAC{2, 0, 0, 0, 0, 0x77}

func (r *runner) commit() {
	var nodes []control.Node
	for _, n := range r.nodes {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b control.Node) int { return strings.Compare(a.Name, b.Name) })
	r.cluster.Commit(nodes)
}

// short prints a State for people: of many nodes the first ones.
func short(s *control.State) string {
	if s == nil {
		return "none"
	}
	return fmt.Sprintf("self %s, %d nodes %+v, problems %+v", describe(s.Self), len(s.Nodes), s.Nodes[:min(8, len(s.Nodes))], s.Problems)
}

// fill puts nodes n0, n1, … into the cluster.
func (r *runner) fill(count string) {
	n, err := strconv.Atoi(count)
	if err != nil {
		r.t.Fatalf("line %d: %v", r.line+1, err)
	}
	for i := range n {
		name := fmt.Sprintf("n%d", i)
		r.nodes[name] = r.node([]string{name, fmt.Sprintf("198.18.%d.%d", i/250, i%250+1), fmt.Sprintf("fd00:10:244:%x::/64", 0x1000+i)})
	}
}

// start runs the source until the test ends or stops it; then it must return without an error.
func (r *runner) start(name string) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	source, states := r.cluster.Source(), r.states
	r.source, r.self, r.before = source, control.Node{Name: name, Endpoints: r.nodes[name].Endpoints}, control.State{}
	source.Announce(r.self)
	go func() {
		done <- source.Run(ctx, func(s control.State) { states <- s })
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		deadline := time.After(patience)
		for {
			select {
			case <-states: // so that the source is not stuck in update
			case err := <-done:
				if err != nil {
					r.t.Errorf("Run returned %v at the end of its context", err)
				}
				return
			case <-deadline:
				r.t.Error("Run did not return at the end of its context")
				return
			}
		}
	})
	r.t.Cleanup(r.stop)
}

func (r *runner) startFails(self string) {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	source := r.cluster.Source()
	source.Announce(control.Node{Name: self})
	err := source.Run(ctx, func(s control.State) {
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
			r.numbered(s)
			r.last = &s
			if missing = r.differs(s, want); missing == "" {
				return
			}
		case <-deadline:
			r.t.Fatalf("line %d: %s; the last State is %s", r.line+1, missing, short(r.last))
		}
	}
}

// numbered holds a State's Revision against the one before it.
func (r *runner) numbered(s control.State) {
	r.t.Helper()
	b := r.before
	same := b.Self.Equal(s.Self) && slices.EqualFunc(b.Nodes, s.Nodes, control.Node.Equal)
	switch {
	case s.Revision == 0:
		r.t.Errorf("line %d: a State without a Revision: %s", r.line+1, short(&s))
	case b.Revision == 0:
	case same != (s.Revision == b.Revision), s.Revision < b.Revision:
		r.t.Errorf("line %d: Revision %d, after %d; the cluster is the same: %v", r.line+1, s.Revision, b.Revision, same)
	}
	r.before = s
}

func (r *runner) differs(s control.State, want [][]string) string {
	nodes, count := map[string]bool{}, -1
	for _, w := range want {
		switch w[0] {
		case "self":
			if got := describe(s.Self); got != strings.Join(w[1:], " ") {
				return fmt.Sprintf("self is %q, want %q", got, w[1:])
			}
		case "announced":
			if s.Self.PublicKey != announcedKey || s.Self.MAC != announcedMAC || !slices.Equal(s.Self.Features, []string{announcedFeature}) ||
				!slices.Equal(s.Self.Ways, waysOf(announcedWays)) {
				return fmt.Sprintf("self is %+v, and was announced as %+v", s.Self, r.self)
			}
		case "node":
			nodes[w[1]] = true
			i := slices.IndexFunc(s.Nodes, func(n control.Node) bool { return n.Name == w[1] })
			if i < 0 || describe(s.Nodes[i]) != strings.Join(w[1:], " ") {
				return fmt.Sprintf("no node %q", w[1:])
			}
		case "takes":
			i := slices.IndexFunc(s.Nodes, func(n control.Node) bool { return n.Name == w[1] })
			if i < 0 || !slices.Equal(s.Nodes[i].Ways, waysOf(w[2])) {
				return fmt.Sprintf("no node that takes %q", w[1:])
			}
		case "nodes":
			count, _ = strconv.Atoi(w[1])
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
	if count < 0 {
		count = len(nodes)
	}
	if count != len(s.Nodes) {
		return fmt.Sprintf("%d nodes, want %d", len(s.Nodes), count)
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
