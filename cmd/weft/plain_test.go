package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestPlain: what others wrote reaches a terminal as text, in columns, in JSON and in errors.
func TestPlain(t *testing.T) {
	evil := "a\x1b[2J\u009b31m\u202eb\r\nready yes\tc\xff\x9b"
	var table, list, words bytes.Buffer
	if err := show(&table, asText, evil, func(w io.Writer) { row(w, "NAME", evil, "end") }); err != nil {
		t.Fatal(err)
	}
	if err := show(&list, asJSON, map[string]string{"name": evil}, nil); err != nil {
		t.Fatal(err)
	}
	c := &cobra.Command{Use: "weft", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error { return errors.New(evil) }}
	c.SetArgs(nil)
	_ = execute(context.Background(), c, &words)
	for what, s := range map[string]string{"a table": table.String(), "JSON": list.String(), "an error": words.String()} {
		if strings.ContainsFunc(s, func(r rune) bool { return hazardous(r, true) }) {
			t.Errorf("%s: %q", what, s)
		}
	}
	if n := strings.Count(table.String(), "\n"); n != 1 {
		t.Errorf("a name made %d lines of one: %q", n, table.String())
	}
	var back map[string]string
	if err := json.Unmarshal(list.Bytes(), &back); err != nil || !strings.Contains(back["name"], "\x1b[2J\u009b31m\u202eb") {
		t.Errorf("JSON: %q, %v", back, err)
	}
	// A character that comes in pieces stays whole.
	var out bytes.Buffer
	w := &plainWriter{to: &out}
	for _, b := range []byte("→ é 🙂\u009b") {
		if _, err := w.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != `→ é 🙂\u009b` {
		t.Errorf("%q", out.String())
	}
}
