package static

import (
	"fmt"
	"net/netip"

	"weft/control"
	"weft/internal/config/strict"
)

// parse reads nodes.yaml. The error means that the file as a whole cannot be trusted: not YAML, an
// unknown key, a value of another type. A value that cannot be right (an address that is none, say)
// is its node's problem only.
func parse(file string, data []byte) ([]control.Node, []control.Problem, error) {
	doc := strict.Parse(file, data)
	if doc.Empty() {
		doc.Fail("the file is empty: list this node at least, under `nodes:`")
	}
	p := parser{file: file}
	fields := doc.Root().Fields("nodes")
	if doc.Root().IsMapping() && !fields["nodes"].Present() && doc.Err() == nil {
		doc.Fail("has no list `nodes:`: list this node at least")
	}
	for _, v := range fields["nodes"].List() {
		p.node(v)
	}
	if err := doc.Err(); err != nil {
		return nil, nil, err
	}
	return p.nodes, p.problems, nil
}

type parser struct {
	file     string
	nodes    []control.Node
	problems []control.Problem
}

func (p *parser) problem(v strict.Value, node, format string, args ...any) {
	p.problems = append(p.problems, control.Problem{
		Node: node, Text: fmt.Sprintf("%s:%d: ", p.file, v.Line()) + fmt.Sprintf(format, args...)})
}

func (p *parser) node(v strict.Value) {
	var n control.Node
	f := v.Fields("name", "endpoints", "prefixes", "public_key", "features", "ways")
	n.Name, _ = f["name"].String()
	if wrong := control.WrongName(n.Name); wrong != "" {
		p.problem(v, "", "the node is left out: %s", wrong)
		n.Name = ""
	}
	for _, e := range f["endpoints"].List() {
		if s, ok := e.String(); ok {
			a, err := netip.ParseAddr(s)
			if err != nil {
				p.problem(e, n.Name, "%q is not an address: write one like 192.0.2.1 or 2001:db8::1", s)
				continue
			}
			n.Endpoints = append(n.Endpoints, a)
		}
	}
	for _, e := range f["prefixes"].List() {
		if s, ok := e.String(); ok {
			prefix, err := netip.ParsePrefix(s)
			if err != nil {
				p.problem(e, n.Name, "%q is not a prefix: write it like 10.244.1.0/24 or fd00:10:244:1::/64", s)
				continue
			}
			n.Prefixes = append(n.Prefixes, prefix)
		}
	}
	if s, ok := f["public_key"].String(); ok && s != "" {
		if wrong := control.WrongKey(s); wrong != "" {
			p.problem(f["public_key"], n.Name, "public_key is left out, it is %s: copy it whole", wrong)
		} else {
			n.PublicKey = s
		}
	}
	for _, e := range f["features"].List() {
		if s, ok := e.String(); ok {
			n.Features = append(n.Features, s)
		}
	}
	for _, e := range f["ways"].List() {
		if s, ok := e.String(); ok {
			way, err := control.ParseWay(s)
			if err != nil {
				p.problem(e, n.Name, "%v", err)
				continue
			}
			n.Ways = append(n.Ways, way)
		}
	}
	if n.Name != "" {
		p.nodes = append(p.nodes, n)
	}
}
