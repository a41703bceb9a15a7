package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"weft/internal/nettest"
)

// Every command has a page, of the date that was asked for, that groff reads without a complaint.
func TestMan(t *testing.T) {
	nettest.RequireTool(t, "man")
	t.Setenv("SOURCE_DATE_EPOCH", "1767225600") // the first of January 2026
	dir := filepath.Join(t.TempDir(), "share", "man1")
	out, stderr, code := weftMain(t.Context(), "man", dir)
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var want []string
	eachCommand(newRoot(), func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		want = append(want, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1")
	})
	var files []string
	for _, page := range want {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(text), `"Jan 2026"`) {
			t.Errorf("%s: no date in %.200s", page, text)
		}
		files = append(files, filepath.Join(dir, page))
	}
	// All pages at once, as man has them read one by one.
	for _, c := range []struct {
		command []string
		pages   int
	}{
		{append([]string{"groff", "-mandoc", "-ww", "-Kutf8", "-Tutf8", "-P-cbou"}, files...), len(files)},
		{[]string{"man", "--warnings", "-E", "UTF-8", "-l", files[0]}, 1},
	} {
		cmd := exec.Command(c.command[0], c.command[1:]...)
		cmd.Env = append(os.Environ(), "MANWIDTH=100", "LC_ALL=C.UTF-8")
		var complaints strings.Builder
		cmd.Stderr = &complaints
		shown, err := cmd.Output()
		if err != nil || complaints.Len() > 0 || strings.Count(string(shown), "SYNOPSIS") < c.pages {
			t.Errorf("%s: %v\n%s\n%.2000s", c.command[0], err, complaints.String(), shown)
		}
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(made) < len(want) || out != fmt.Sprintf("%d pages in %s\n", len(made), dir) {
		t.Errorf("%v, %q, said %q", err, made, out)
	}
	if _, stderr, code := weftMain(t.Context(), "man", "/dev/null/man"); code != exitFailed || !strings.Contains(stderr, "not a directory") {
		t.Errorf("an impossible folder: exit code %d, %s", code, stderr)
	}
}

func TestCompletion(t *testing.T) {
	for line, want := range map[string][]string{
		"stat":                                 {"status"},
		"status -o ":                           {"text", "json"},
		"status --output j":                    {"json"},
		"status ":                              nil, // no files
		"lab run --layout ":                    {"split", "free"},
		"lab run --contenders bare,tun-":       {"bare,tun-gso"},
		"lab run --tests tcp-stream,udp-rate,": {"tcp-stream,udp-rate,tcp-rr"},
		"bench run --tests tcp-str":            {"tcp-stream"},
		"lab ":                                 {"run", "contenders"},
		"completion b":                         {"bash"},
	} {
		words := strings.Split(line, " ")
		out, _, code := weftMain(t.Context(), append([]string{"__complete"}, words...)...)
		var got []string
		for l := range strings.Lines(out) {
			name, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
			if !strings.HasPrefix(name, ":") {
				got = append(got, name)
			}
		}
		for _, w := range want {
			if !slices.Contains(got, w) {
				t.Errorf("%q: %q is not among %q", line, w, got)
			}
		}
		if code != exitDone || want == nil && (len(got) > 0 || !strings.Contains(out, ":4")) { // ShellCompDirectiveNoFileComp
			t.Errorf("%q: exit code %d\n%s", line, code, out)
		}
	}
	// The scripts are ones their shells can read.
	nettest.RequireTool(t, "bash")
	script, _, _ := weftMain(t.Context(), "completion", "bash")
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil || len(script) < 1000 {
		t.Errorf("bash: %v: %s", err, out)
	}
	for _, shell := range []string{"zsh", "fish", "powershell"} {
		if out, stderr, code := weftMain(t.Context(), "completion", shell); code != exitDone || len(out) < 1000 {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr)
		}
	}
}
