package main

import (
	"path/filepath"
	"testing"
)

// TestKeysIfMissing: what is run at every start of a pod makes a key once.
func TestKeysIfMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "key")
	first, errs, code := runRoot(t, "keys", "gen", "--if-missing", "--file", file)
	if code != 0 || len(first) < 44 {
		t.Fatalf("no key was made: %q %q, exit code %d", first, errs, code)
	}
	if again, errs, code := runRoot(t, "keys", "gen", "--if-missing", "--file", file); code != 0 || again != first {
		t.Errorf("the key that is there: %q %q, exit code %d; want %q", again, errs, code, first)
	}
	if _, errs, code := runRoot(t, "keys", "gen", "--file", file); code == 0 {
		t.Errorf("a key was to be overwritten without a word: %q", errs)
	}
}
