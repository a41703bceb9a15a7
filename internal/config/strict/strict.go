// Package strict reads YAML the way a person wants a configuration file read: every mistake of the
// file is found in one pass, each with its line and what to write instead. A key that nobody asked
// for is a mistake, a value of another type is a mistake, and nothing is converted silently.
//
// A caller walks the document with Value and asks the Document for its errors at the end:
//
//	doc := strict.Parse("nodes.yaml", data)
//	for _, n := range doc.Root().Fields("nodes")["nodes"].List() { … }
//	return doc.Err()
//
// The subset is deliberate: one document, no anchors, aliases, tags or merge keys.
package strict

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Error is one mistake in a file.
type Error struct {
	File string
	Line int    // from 1; 0 = the file as a whole
	Key  string // dotted path of the value, "" = the file as a whole
	Text string // what is wrong and what to write instead
}

func (e Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Text
}

// Errors are all mistakes of a file, sorted by line. Error puts each on its own line.
type Errors []Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Document is one file and the mistakes found in it so far.
type Document struct {
	file string
	body ast.Node
	errs Errors
}

// Parse reads data; file is the name that errors carry. It never fails by itself: what is wrong
// with the syntax is in Err, and the Root is then absent.
func Parse(file string, data []byte) *Document {
	d := &Document{file: file}
	d.body = d.parse(data)
	return d
}

func (d *Document) parse(data []byte) ast.Node {
	f, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return nil
	}
	var bodies []ast.Node
	for _, doc := range f.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.CommentType {
			bodies = append(bodies, doc.Body)
		}
	}
	if len(bodies) > 1 {
		d.fail(line(bodies[1]), "", "a second YAML document starts here: keep one document in the file")
	}
	if len(bodies) == 0 {
		return nil
	}
	return bodies[0]
}

func (d *Document) syntax(err error) {
	var ye yaml.Error
	at := 0
	text := err.Error()
	if errors.As(err, &ye) {
		text = ye.GetMessage()
		if t := ye.GetToken(); t != nil && t.Position != nil {
			at = t.Position.Line
		}
	}
	text, _, _ = strings.Cut(text, "\n")
	d.fail(at, "", "not YAML: %s", text)
}

func (d *Document) fail(line int, key, format string, args ...any) {
	d.errs = append(d.errs, Error{File: d.file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

// Root is the whole document.
func (d *Document) Root() Value { return Value{doc: d, node: d.body} }

// Empty says that the file holds nothing but comments, and parsed well.
func (d *Document) Empty() bool { return d.body == nil && len(d.errs) == 0 }

// Fail records a mistake of the file as a whole.
func (d *Document) Fail(format string, args ...any) { d.fail(0, "", format, args...) }

// Err returns all mistakes found so far as Errors sorted by line, or nil.
func (d *Document) Err() error {
	if len(d.errs) == 0 {
		return nil
	}
	errs := slices.Clone(d.errs)
	sort.SliceStable(errs, func(i, j int) bool { return errs[i].Line < errs[j].Line })
	return errs
}

// Value is one node of the document and its dotted path. The zero Value is an absent one: reading
// it yields zeros and no errors.
type Value struct {
	doc  *Document
	node ast.Node
	path string
	at   int // line of the key that holds it, where its own is not known
}

// Present says whether the file holds the value.
func (v Value) Present() bool { return v.node != nil }

// Line is where the value stands, from 1.
func (v Value) Line() int {
	if v.node == nil {
		return v.at
	}
	if v.at > 0 && (v.node.Type() == ast.MappingType || v.node.Type() == ast.MappingValueType) {
		return v.at
	}
	return line(v.node)
}

// Fail records a mistake of this value.
func (v Value) Fail(format string, args ...any) {
	if v.doc != nil {
		v.doc.fail(v.Line(), v.path, format, args...)
	}
}

// IsMapping says whether the value has keys of its own.
func (v Value) IsMapping() bool {
	if v.node == nil {
		return false
	}
	t := v.node.Type()
	return t == ast.MappingType || t == ast.MappingValueType
}

// IsNumber says whether the value is a whole number.
func (v Value) IsNumber() bool { return v.node != nil && v.node.Type() == ast.IntegerType }

// IsList says whether the value is a list.
func (v Value) IsList() bool { return v.node != nil && v.node.Type() == ast.SequenceType }

// Fields returns the values of a mapping by key. Keys that are not among known are mistakes, and so
// are keys written twice.
func (v Value) Fields(known ...string) map[string]Value {
	return v.fields(known, func(key string) bool { return slices.Contains(known, key) })
}

// Map is Fields where every key is known: the writer chooses them.
func (v Value) Map() map[string]Value {
	return v.fields([]string{"of your own"}, func(string) bool { return true })
}

func (v Value) fields(known []string, isKnown func(string) bool) map[string]Value {
	fields := map[string]Value{}
	for _, kv := range v.pairs(known) {
		key := kv.Key.GetToken().Value
		at := line(kv.Key)
		path := join(v.path, key)
		switch {
		case !isKnown(key):
			v.doc.fail(at, path, "unknown key%s", suggest(key, known))
		case fields[key].doc != nil:
			v.doc.fail(at, path, "written twice, first in line %d: keep one", fields[key].at)
		case kv.Value == nil || kv.Value.Type() == ast.NullType:
			v.doc.fail(at, path, "has no value: write one or remove the key")
			fields[key] = Value{doc: v.doc, path: path, at: at}
		default:
			fields[key] = Value{doc: v.doc, node: kv.Value, path: path, at: at}
		}
	}
	return fields
}

func (v Value) pairs(known []string) []*ast.MappingValueNode {
	switch n := v.node.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		return slices.DeleteFunc(slices.Clone(n.Values), v.badKey)
	case *ast.MappingValueNode:
		return slices.DeleteFunc([]*ast.MappingValueNode{n}, v.badKey)
	}
	v.Fail("is %s, wants keys: %s", kind(v.node), strings.Join(known, ", "))
	return nil
}

// badKey refuses keys that are not plain words: merge keys, complex keys, anchors.
func (v Value) badKey(kv *ast.MappingValueNode) bool {
	switch kv.Key.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return false
	}
	v.doc.fail(line(kv.Key), v.path, "has %s as a key: write a plain word", kind(kv.Key))
	return true
}

// List returns the elements of a sequence; their paths count from 0: nodes[0].
func (v Value) List() []Value {
	if v.node == nil {
		return nil
	}
	seq, ok := v.node.(*ast.SequenceNode)
	if !ok {
		v.Fail("is %s, wants a list: [ … ]", kind(v.node))
		return nil
	}
	list := make([]Value, 0, len(seq.Values))
	for i, n := range seq.Values {
		e := Value{doc: v.doc, node: n, path: fmt.Sprintf("%s[%d]", v.path, i), at: v.at}
		if n == nil || n.Type() == ast.NullType {
			e.node = nil
			e.Fail("is empty: write a value or remove it")
			continue
		}
		if n.Type() == ast.MappingType || n.Type() == ast.MappingValueType {
			e.at = line(n)
		}
		list = append(list, e)
	}
	return list
}

// String returns a text; ok is false where there is none (absent, or a mistake already recorded).
func (v Value) String() (s string, ok bool) {
	switch n := v.node.(type) {
	case nil:
		return "", false
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		v.Fail("is %s, wants a text: write %q in quotes", kind(n), n.GetToken().Value)
	default:
		v.Fail("is %s, wants a text", kind(n))
	}
	return "", false
}

// Int returns a whole number within [least, most].
func (v Value) Int(least, most int64) (n int64, ok bool) {
	if v.node == nil {
		return 0, false
	}
	i, isInt := v.node.(*ast.IntegerNode)
	if !isInt {
		v.Fail("is %s, wants a whole number from %d to %d", kind(v.node), least, most)
		return 0, false
	}
	fits := true
	switch x := i.Value.(type) {
	case int64:
		n = x
	case uint64: // goccy gives all non-negative numbers as uint64
		n, fits = int64(x), x <= 1<<62
	default:
		fits = false
	}
	if !fits || n < least || n > most {
		v.Fail("%s is out of range: write %d to %d", i.GetToken().Value, least, most)
		return 0, false
	}
	return n, true
}

// Bool returns true or false.
func (v Value) Bool() (b, ok bool) {
	if v.node == nil {
		return false, false
	}
	n, isBool := v.node.(*ast.BoolNode)
	if !isBool {
		v.Fail("is %s, wants true or false", kind(v.node))
		return false, false
	}
	return n.Value, true
}

func line(n ast.Node) int {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0
	}
	return n.GetToken().Position.Line
}

func kind(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode:
		return fmt.Sprintf("the text %q", n.Value)
	case *ast.LiteralNode:
		return "a text of several lines"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + n.GetToken().Value
	case *ast.BoolNode:
		return n.GetToken().Value
	case *ast.NullNode:
		return "nothing"
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		return "an anchor, alias, tag or merge key (not supported here)"
	}
	return "something else"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
