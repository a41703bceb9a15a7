package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"syscall"
)

// Read reads a result that `weft lab run` or `weft bench run` has written.
func Read(path string) (*Result, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("read a result of the lab: %s is a folder: give the file in it, %s", path, filepath.Join(path, "result.json"))
	}
	if err != nil {
		return nil, fmt.Errorf("read a result of the lab: %w", err)
	}
	var r Result
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: not a result of the lab: %w: give the result.json of `weft lab run` or `weft bench run`", path, err)
	}
	if r.Schema == schemaWithZeros {
		r.withoutZeros()
	}
	if r.Schema == schemaOneHost {
		r.Schema = Schema
		if r.Host != nil {
			r.Hosts, r.Host = []Host{*r.Host}, nil
		}
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%s: schema %q, this weft reads %q: give the result.json of `weft lab run` or `weft bench run`, of the same version", path, r.Schema, Schema)
	}
	return &r, nil
}

// withoutZeros makes unanswered samples of the rates of 0 that searches without an answer had, and of the losses beside them.
func (r *Result) withoutZeros() {
	r.Schema = schemaOneHost
	for i := range r.Results {
		rate := &r.Results[i]
		if rate.Test != "udp-rate" || rate.Metric != "rate" {
			continue
		}
		for round, v := range rate.Samples {
			if v != 0 {
				continue
			}
			for k := range r.Results {
				o := &r.Results[k]
				if o.Contender == rate.Contender && o.Test == rate.Test && maps.Equal(o.Params, rate.Params) && round < len(o.Samples) {
					o.Samples[round] = math.NaN()
					o.Median, o.Low, o.High = Summary(o.Samples)
				}
			}
		}
	}
	for i := range r.Generator {
		g := &r.Generator[i]
		for round, v := range g.Samples {
			if g.Test == "udp-rate" && v == 0 {
				g.Samples[round] = math.NaN()
			}
		}
		g.Median, g.Low, g.High = Summary(g.Samples)
	}
}
