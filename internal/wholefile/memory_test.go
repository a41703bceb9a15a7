package wholefile

import (
	"os"
	"path/filepath"
	"testing"
)

// TestKeepAndRecall: what is kept is recalled, and nobody else may read it; what is damaged is set aside, once and not lost.
func TestKeepAndRecall(t *testing.T) {
	type kept struct {
		N int `json:"n"`
	}
	path := filepath.Join(t.TempDir(), "state", "it.json")
	recall := func(least int) (k kept, found bool, damaged string) {
		found, damaged, err := Recall(path, &k, func() bool { return k.N >= least })
		if err != nil {
			t.Fatal(err)
		}
		return k, found, damaged
	}
	if _, found, damaged := recall(0); found || damaged != "" {
		t.Errorf("of nothing: found %v, damaged %q", found, damaged)
	}
	if err := Keep(path, kept{7}); err != nil {
		t.Fatal(err)
	}
	if k, found, _ := recall(1); !found || k.N != 7 {
		t.Errorf("recalled %+v, found %v", k, found)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for what, text := range map[string]string{"no JSON": "{", "refused": `{"n":1}`, "empty": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, found, damaged := recall(5); found || damaged != path+".damaged" {
			t.Errorf("%s: found %v, damaged %q", what, found, damaged)
		}
		if aside, err := os.ReadFile(path + ".damaged"); err != nil || string(aside) != text {
			t.Errorf("%s: %q is set aside, %v", what, aside, err)
		}
		if _, found, damaged := recall(5); found || damaged != "" {
			t.Errorf("%s, again: found %v, damaged %q", what, found, damaged)
		}
	}
}
