package result

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReadOneHost: a result of before has one host, which is the first of the list.
func TestReadOneHost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	for _, schema := range []string{schemaWithZeros, schemaOneHost} {
		if err := os.WriteFile(file, []byte(`{"schema": "`+schema+`", "host": {"kernel": "6.1", "cores": 2}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := Read(file)
		if err != nil {
			t.Fatal(err)
		}
		if r.Schema != Schema || r.Host != nil || len(r.Hosts) != 1 || r.Hosts[0].Kernel != "6.1" {
			t.Errorf("%s: %s", schema, text(t, r))
		}
	}
}

// TestReadZeros: in results of before, a rate of 0 is a search without an answer. Other zeros are figures.
func TestReadZeros(t *testing.T) {
	old := `{"schema": "weft.lab/1", "results": [
		{"contender": "tun", "test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [0, 66090, 0], "median": 0, "low": 0, "high": 66090},
		{"contender": "tun", "test": "udp-rate", "params": {"size": 64}, "metric": "loss", "unit": "ratio", "samples": [0.01, 0, 0.02], "median": 0.01, "low": 0, "high": 0.02},
		{"contender": "xdp", "test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [1, 2, 3], "median": 2, "low": 1, "high": 3},
		{"contender": "xdp", "test": "udp-rate", "params": {"size": 64}, "metric": "loss", "unit": "ratio", "samples": [0, 0, 0], "median": 0, "low": 0, "high": 0}],
		"generator": [{"test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [0, 5], "median": 2.5, "low": 0, "high": 5}]}`
	file := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.Schema != Schema {
		t.Errorf("schema %s", r.Schema)
	}
	for i, want := range []string{"[null,66090,null] 66090 66090", "[null,0,null] 0 0", "[1,2,3] 2 1", "[0,0,0] 0 0"} {
		row := r.Results[i]
		if got := text(t, row.Samples) + " " + text(t, row.Median) + " " + text(t, row.Low); got != want {
			t.Errorf("row %d is %s, want %s", i, got, want)
		}
	}
	if g := r.Generator[0]; text(t, g.Samples) != "[null,5]" || g.Median != 5 || g.Low != 5 {
		t.Errorf("the generators' ceiling is %s", text(t, g))
	}
}
