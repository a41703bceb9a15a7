package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"weft/api"
)

// topology is the mesh as one node sees it: itself, and a link to each other node.
type topology struct {
	Node  string         `json:"node"`
	Links []topologyLink `json:"links"` // by name
}

// topologyLink is how this node and another one see each other.
type topologyLink struct {
	Node     string         `json:"node"`
	Address  netip.AddrPort `json:"address"`            // at which it hears the mesh
	Heard    bool           `json:"heard"`              // by the mesh
	Way      string         `json:"way"`                // by which packets go there, "" = none leads there
	State    string         `json:"state,omitempty"`    // of that way
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`  // to which they go
	Sealed   bool           `json:"sealed"`             // there are keys with it
	MTU      int            `json:"mtu"`                // of inner packets, bytes
	Reason   string         `json:"reason"`             // why it is no better way, or none
	Prefixes []netip.Prefix `json:"prefixes,omitempty"` // in force
}

func newMeshTopologyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "topology",
		Short: "How this node reaches each other node of the mesh, and why so",
		Long: `How this node reaches each other node of the mesh: whether it is heard, by which way packets go, and why by no
better one. It is what this node sees; ask others for what they see.`,
		Example: "  weft mesh topology --dot | dot -Tsvg > mesh.svg",
		Args:    cobra.NoArgs,
	}
	socket, form := socketFlag(c), formatFlag(c)
	dot := c.Flags().Bool("dot", false, "a picture in the language of Graphviz")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *dot && c.Flags().Changed("output") {
			return usageError{fmt.Errorf("--dot and --output are two forms: leave one out")}
		}
		t, err := ask(c.Context(), *socket, askTopology)
		if err != nil {
			return err
		}
		if *dot {
			_, err := io.WriteString(c.OutOrStdout(), t.dot())
			return err
		}
		return show(c.OutOrStdout(), *form, t, t.print)
	}
	return c
}

func askTopology(client *api.Client, ctx context.Context) (topology, error) {
	m, err := client.Mesh(ctx)
	if err != nil {
		return topology{}, err
	}
	if !m.Enabled {
		return topology{}, fmt.Errorf("this node is not in a mesh: control.kind is another one; `weft join` writes a configuration, `weft peers` shows how others are reached")
	}
	peers, err := client.Peers(ctx)
	return topologyOf(m, peers), err
}

// topologyOf joins whom the mesh knows with how they are reached.
func topologyOf(m api.Mesh, peers []api.Peer) topology {
	t := topology{Node: m.Node, Links: []topologyLink{}}
	for _, n := range m.Nodes {
		if n.Self {
			continue
		}
		l := topologyLink{Node: n.Name, Address: n.Address, Heard: n.Live, Prefixes: n.Prefixes, Reason: "it is not among this node's peers"}
		if len(n.Prefixes) == 0 {
			l.Reason = "it has no prefix yet"
		}
		if i := slices.IndexFunc(peers, func(p api.Peer) bool { return p.Node == n.Name }); i >= 0 {
			p := peers[i]
			l.Way, l.State, l.Endpoint, l.MTU, l.Reason = p.Way, p.State, p.Endpoint, p.MTU, p.Reason
			l.Sealed = p.Session != nil && p.Session.Established
		}
		t.Links = append(t.Links, l)
	}
	return t
}

func (t topology) print(w io.Writer) {
	row(w, "FROM", "TO", "HEARD", "WAY", "ENDPOINT", "SEALED", "MTU", "WHY")
	for _, l := range t.Links {
		way, endpoint, why := "none", "-", "-"
		if l.Way != "" {
			way = strings.TrimSuffix(l.Way+" "+l.State, " ")
		}
		if l.Endpoint.IsValid() {
			endpoint = l.Endpoint.String()
		}
		if l.Reason != "" {
			why = l.Reason
		}
		row(w, t.Node, l.Node, yes(l.Heard), way, endpoint, yes(l.Sealed), l.MTU, why)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// dot draws it in Graphviz' language (https://graphviz.org/doc/info/lang.html). Who is not heard is dashed; where no way leads, the line is red.
func (t topology) dot() string {
	var b strings.Builder
	b.WriteString("graph mesh {\n\tlayout=circo\n\tnode [shape=box, fontname=\"sans-serif\"]\n\tedge [fontname=\"sans-serif\", fontsize=10]\n")
	fmt.Fprintf(&b, "\t%s [style=bold]\n", strconv.Quote(t.Node))
	for _, l := range t.Links {
		style, label, colour := "solid", l.Way, "black"
		if !l.Heard {
			style = "dashed"
		}
		if l.Way == "" {
			label, colour = l.Reason, "red"
		}
		name := l.Node
		if name == t.Node { // two nodes of one name
			name += " at " + l.Address.Addr().String()
		}
		fmt.Fprintf(&b, "\t%s [label=%s, style=%s]\n", strconv.Quote(name), strconv.Quote(strings.Join(append([]string{name}, texts(l.Prefixes)...), "\n")), style)
		fmt.Fprintf(&b, "\t%s -- %s [label=%s, style=%s, color=%s]\n", strconv.Quote(t.Node), strconv.Quote(name), strconv.Quote(label), style, colour)
	}
	b.WriteString("}\n")
	return b.String()
}

func texts[T fmt.Stringer](list []T) (words []string) {
	for _, v := range list {
		words = append(words, v.String())
	}
	return words
}
