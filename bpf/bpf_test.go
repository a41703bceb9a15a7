package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// TestObjectIsFresh: the committed object was made from the committed source.
func TestObjectIsFresh(t *testing.T) {
	source, err := os.ReadFile("flow.c")
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile("flow.c.sha256")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(source)
	if have, _, _ := strings.Cut(string(recorded), " "); have != hex.EncodeToString(sum[:]) {
		t.Error("flow.c has changed since the object was made from it: run `go generate ./bpf` (needs clang and libbpf-dev)")
	}
}
