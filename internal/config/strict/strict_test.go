package strict_test

import (
	"errors"
	"strings"
	"testing"

	"weft/internal/config/strict"
)

// read walks a document of a fixed shape: {name: text, size: 1..100, on: bool, list: [text], sub: {key: text}}.
func read(doc *strict.Document) (name string, size int64, on bool, list []string, key string) {
	f := doc.Root().Fields("name", "size", "on", "list", "sub")
	name, _ = f["name"].String()
	size, _ = f["size"].Int(1, 100)
	on, _ = f["on"].Bool()
	for _, e := range f["list"].List() {
		s, _ := e.String()
		list = append(list, s)
	}
	key, _ = f["sub"].Fields("key")["key"].String()
	return
}

func TestReadsWhatItIsAskedFor(t *testing.T) {
	doc := strict.Parse("f.yaml", []byte("# a comment\nname: x\nsize: 7\non: true\nlist: [a, \"2001:db8::1\", 192.0.2.1]\nsub:\n  key: |\n    long\n"))
	name, size, on, list, key := read(doc)
	if err := doc.Err(); err != nil {
		t.Fatal(err)
	}
	if name != "x" || size != 7 || !on || strings.Join(list, " ") != "a 2001:db8::1 192.0.2.1" || key != "long\n" {
		t.Errorf("got %q %d %v %q %q", name, size, on, list, key)
	}
}

func TestMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string // one for each error, in order
	}{
		"typo":             {"nmae: x", []string{"f.yaml:1: nmae: unknown key: did you mean name?"}},
		"unknown":          {"\nzzzzzz: x", []string{"f.yaml:2: zzzzzz: unknown key: known here are name, size, on, list, sub"}},
		"typo below":       {"sub:\n  kay: x", []string{"f.yaml:2: sub.kay: unknown key: did you mean key?"}},
		"twice":            {"name: x\nname: y", []string{"f.yaml:2: name: written twice, first in line 1: keep one"}},
		"no value":         {"name:\nsize: 1", []string{"f.yaml:1: name: has no value: write one or remove the key"}},
		"no value, twice":  {"name:\nname: x", []string{"f.yaml:1: name: has no value", "f.yaml:2: name: written twice"}},
		"number for text":  {"name: 12", []string{`f.yaml:1: name: is the number 12, wants a text: write "12" in quotes`}},
		"bool for text":    {"name: true", []string{`f.yaml:1: name: is true, wants a text: write "true" in quotes`}},
		"list for text":    {"name: [a]", []string{"f.yaml:1: name: is a list, wants a text"}},
		"text for number":  {"size: big", []string{`f.yaml:1: size: is the text "big", wants a whole number from 1 to 100`}},
		"too small":        {"size: 0", []string{"f.yaml:1: size: 0 is out of range: write 1 to 100"}},
		"negative":         {"size: -3", []string{"f.yaml:1: size: -3 is out of range: write 1 to 100"}},
		"huge":             {"size: 99999999999999999999", []string{"f.yaml:1: size:"}},
		"over int64":       {"size: 18446744073709551615", []string{"f.yaml:1: size: 18446744073709551615 is out of range"}},
		"fraction":         {"size: 1.5", []string{"f.yaml:1: size: is the number 1.5, wants a whole number"}},
		"text for bool":    {"on: perhaps", []string{`f.yaml:1: on: is the text "perhaps", wants true or false`}},
		"text for list":    {"list: a", []string{`f.yaml:1: list: is the text "a", wants a list: [ … ]`}},
		"number in list":   {"list:\n - a\n - 3", []string{"f.yaml:3: list[1]: is the number 3, wants a text"}},
		"nothing in list":  {"list: [a, ~]", []string{"f.yaml:1: list[1]: is empty"}},
		"text for mapping": {"sub: x", []string{`f.yaml:1: sub: is the text "x", wants keys: key`}},
		"list for all":     {"[1]", []string{"f.yaml:1: is a list, wants keys: name, size, on, list, sub"}},
		"syntax":           {"name: x\nsub: {key: [", []string{"f.yaml:2: not YAML: "}},
		"two documents":    {"name: x\n---\nname: y", []string{"f.yaml:3: a second YAML document starts here"}},
		"alias":            {"name: &a x\nlist: [*a]", []string{"f.yaml:1: name: is an anchor", "f.yaml:2: list[0]: is an anchor"}},
		"merge key":        {"<<: {name: x}", []string{"f.yaml:1: has an anchor, alias, tag or merge key (not supported here) as a key"}},
		"all at once": {"size: 0\nfoo: 1\nname: 1\non: 3", []string{
			"f.yaml:1: size: 0 is out of range", "f.yaml:2: foo: unknown key", "f.yaml:3: name: is the number 1", "f.yaml:4: on: is the number 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			doc := strict.Parse("f.yaml", []byte(c.in))
			read(doc)
			err := doc.Err()
			var errs strict.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("no error, want %q", c.want)
			}
			if len(errs) != len(c.want) {
				t.Fatalf("got:\n%v\nwant %q", err, c.want)
			}
			for i := range errs {
				if !strings.HasPrefix(errs[i].Error(), c.want[i]) {
					t.Errorf("got  %s\nwant %s", errs[i], c.want[i])
				}
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	for in, want := range map[string]bool{"": true, "# only this\n": true, "a: 1": false, "a: [": false} {
		doc := strict.Parse("f.yaml", []byte(in))
		if got := doc.Empty(); got != want {
			t.Errorf("%q: Empty is %v", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"name: x\nsize: 7", "list: [a, b]\nsub: {key: v}", "<<: *a", "? [a]\n: b", "a: !!int 1", "- - -", "size: 0x10", "\x00", "name: |\n x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		doc := strict.Parse("f.yaml", data)
		name, size, _, _, _ := read(doc)
		if doc.Err() == nil && size != 0 && (size < 1 || size > 100) {
			t.Errorf("size %d, name %q of %q without an error", size, name, data)
		}
	})
}

// TestMap: keys of the writer's own are no mistakes; what is written twice or has no value still is.
func TestMap(t *testing.T) {
	doc := strict.Parse("f", []byte("labels: {app: web, 7: x}\nn: 7\nwrong: [1]\ntwice: {a: b, a: c}\nempty: {a: }\n"))
	f := doc.Root().Fields("labels", "n", "wrong", "twice", "empty")
	labels := f["labels"].Map()
	if s, ok := labels["app"].String(); !ok || s != "web" || len(labels) != 2 {
		t.Errorf("labels: %v", labels)
	}
	if !f["n"].IsNumber() || f["labels"].IsNumber() || (strict.Value{}).IsNumber() {
		t.Error("numbers are not told from others")
	}
	if err := doc.Err(); err != nil {
		t.Error(err)
	}
	for _, k := range []string{"wrong", "twice", "empty"} {
		f[k].Map()
		if err := doc.Err(); err == nil || !strings.Contains(err.Error(), k) {
			t.Errorf("%s: no mistake was found: %v", k, err)
		}
	}
}
