package main

import (
	"strings"

	"github.com/spf13/cobra"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// addCompletions tells shells what may follow, where the program knows: the names that flags take,
// and that no command but `weft man` takes a file.
func addCompletions(root *cobra.Command) {
	values := map[string]cobra.CompletionFunc{
		"output":     fixed(string(asText), string(asJSON)),
		"layout":     fixed(string(testbed.Split), string(testbed.Free)),
		"family":     fixed("4", "6"),
		"contenders": list(contenderNames),
		"tests":      list(testNames),
		"test":       fixed(testNames()...),
	}
	eachCommand(root, func(c *cobra.Command) {
		if c.ValidArgsFunction == nil && !c.HasSubCommands() {
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		for name, complete := range values {
			if c.Flags().Lookup(name) != nil {
				// Fails where there is no such flag, or one completed already: neither is so.
				_ = c.RegisterFlagCompletionFunc(name, complete)
			}
		}
	})
}

func fixed(names ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)
}

// list completes the last name of a list with commas.
func list(names func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before := typed[:strings.LastIndex(typed, ",")+1]
		var all []string
		for _, n := range names() {
			all = append(all, before+n)
		}
		return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func contenderNames() (names []string) {
	for _, r := range contender.Rows() {
		names = append(names, r.Name)
	}
	for _, p := range contender.Presets() {
		names = append(names, p.Name)
	}
	return names
}

func testNames() (names []string) {
	for _, t := range probe.Tests {
		names = append(names, t.Name)
	}
	return names
}
