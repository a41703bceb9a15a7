package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestDryRunKeys: the keys of what a dry run says are lower case, as all of weft's.
func TestDryRunKeys(t *testing.T) {
	text, err := json.Marshal(dryRun{Samples: []planned{{Test: "tcp-rr"}}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"samples":[`) {
		t.Errorf("%s", text)
	}
}
