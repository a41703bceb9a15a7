package perf

import (
	"encoding/json"
	"fmt"
	"os"
)

// Read reads a result that `weft lab run` has written.
func Read(path string) (*Result, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a result of the lab: %w", err)
	}
	var r Result
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: not a result of the lab: %w: give the result.json of `weft lab run`", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%s: schema %q, this weft reads %q: give the result.json of `weft lab run`, of the same version", path, r.Schema, Schema)
	}
	return &r, nil
}
