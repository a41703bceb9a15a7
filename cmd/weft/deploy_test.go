package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDeployedCommands: every command of weft's in what is deployed, and in the comments that say how to use it, has arguments and flags that there are.
func TestDeployedCommands(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../deploy/kubernetes/*.yaml", "../../deploy/systemd/*.service"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	list := regexp.MustCompile(`(?m)^ *command: \[/usr/local/bin/weft, (.*)\]$`)
	unit := regexp.MustCompile(`(?m)^Exec\w+=/usr/local/bin/weft (.*)$`)
	comment := regexp.MustCompile(`(?m)^#   .*\bweft (bench .*)$`)
	substitution := regexp.MustCompile(`\$\([^()]*(?:\([^()]*\)[^()]*)*\)`)
	seen := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(data), "\\\n#", "")
		var commands [][]string
		for _, m := range list.FindAllStringSubmatch(text, -1) {
			commands = append(commands, strings.Split(m[1], ", "))
		}
		for _, m := range unit.FindAllStringSubmatch(text, -1) {
			commands = append(commands, strings.Fields(strings.ReplaceAll(m[1], "$HOSTS", "a=192.0.2.1 b=192.0.2.2")))
		}
		for _, m := range comment.FindAllStringSubmatch(text, -1) {
			words := strings.Fields(substitution.ReplaceAllString(m[1], "a=192.0.2.1"))
			if len(words) > 3 {
				commands = append(commands, words)
			}
		}
		seen += len(commands)
		for _, words := range commands {
			for i, w := range words { // what is not the command's
				if strings.HasPrefix(w, ">") || strings.HasPrefix(w, "#") {
					words = words[:i]
					break
				}
			}
			c, rest, err := newRoot().Find(words)
			if err != nil || c.RunE == nil {
				t.Errorf("%s: weft %s: %v", file, strings.Join(words, " "), err)
				continue
			}
			if err := c.ParseFlags(rest); err != nil {
				t.Errorf("%s: weft %s: %v", file, strings.Join(words, " "), err)
			} else if err := c.ValidateArgs(c.Flags().Args()); err != nil {
				t.Errorf("%s: weft %s: %v", file, strings.Join(words, " "), err)
			}
		}
	}
	if seen < 7 {
		t.Errorf("%d commands found in %q", seen, files)
	}
}
