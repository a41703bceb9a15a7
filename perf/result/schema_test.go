package result

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"testing"
)

// TestSchema holds the types to the published example: every key of it is known, and writing what
// was read gives the same document.
func TestSchema(t *testing.T) {
	example, err := os.ReadFile("testdata/result.json")
	if err != nil {
		t.Fatal(err)
	}
	var r Result
	d := json.NewDecoder(bytes.NewReader(example))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Schema != Schema {
		t.Errorf("the example is of schema %q, this is %q", r.Schema, Schema)
	}
	again, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(example, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("written again the example reads\n%s\nwant\n%s", again, example)
	}
}

// TestSchemaOfNothing: a run without results still has every list.
func TestSchemaOfNothing(t *testing.T) {
	data, err := json.Marshal(New(nil, Settings{}))
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"results", "conservation", "unsupported", "failed"} {
		if _, isList := doc[key].([]any); !isList {
			t.Errorf("%s is %v, want a list", key, doc[key])
		}
	}
}
