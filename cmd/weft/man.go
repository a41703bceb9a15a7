package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"weft/internal/wholefile"
)

// newManCommand is `weft man`.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man FOLDER",
		Short: "Write the manual pages into a folder",
		Long: `Write a page of section 1 for each command into a folder, which is made where it does not exist:
weft(1), weft-daemon(1) and so on. The pages say what --help says. SOURCE_DATE_EPOCH sets their date.`,
		Example: "  weft man /usr/local/share/man/man1\n  weft man . && man -l weft-daemon.1",
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(c *cobra.Command, args []string) error {
			dir := args[0]
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			root := c.Root()
			eachCommand(root, func(c *cobra.Command) { c.DisableAutoGenTag = true })
			var set wholefile.Set
			pages := 0
			eachCommand(root, func(c *cobra.Command) {
				if !c.IsAvailableCommand() && c != root || c.IsAdditionalHelpTopicCommand() {
					return
				}
				pages++
				header := &doc.GenManHeader{Section: "1", Source: "weft " + version().Version, Manual: "weft"} // GenMan writes the title into it
				set.Add(filepath.Join(dir, strings.ReplaceAll(c.CommandPath(), " ", "-")+".1"), 0o644, func(w io.Writer) error { return doc.GenMan(c, header, w) })
			})
			if err := set.Commit(); err != nil {
				return fmt.Errorf("man: %w", err)
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%d pages in %s\n", pages, dir)
			return err
		},
	}
}
