package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build says what this binary is made of.
type build struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // built from a tree that differs from the commit
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (b build) String() string {
	s := b.Version
	if b.Commit != "" {
		s += " (" + b.Commit[:min(len(b.Commit), 12)]
		if b.Modified {
			s += ", modified"
		}
		s += ")"
	}
	return s
}

// What scripts/image and scripts/release say of a build, whose own records would differ from tree to tree; "" otherwise.
var release, revision string

// version reads what the Go linker recorded.
func version() build {
	b := build{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	if release != "" {
		b.Version, b.Commit, b.Modified = release, revision, false
	}
	return b
}

// newVersionCommand is `weft version`.
func newVersionCommand() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "What this binary is", Args: cobra.NoArgs}
	form := formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		b := version()
		return show(c.OutOrStdout(), *form, b, func(w io.Writer) { fmt.Fprintf(w, "weft %s %s %s\n", b, b.Go, b.Platform) })
	}
	return c
}
