package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"weft/perf/history"
	"weft/perf/report"
	"weft/perf/result"
)

// newLabReportCommand is `weft lab report`. Its -o names a file, as everybody expects of it; json is that word.
func newLabReportCommand() *cobra.Command {
	var out, runs string
	cmd := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "Make a page to look at of a result",
		Long: `Make one HTML page of a result: what each contender costs, with intervals, and the curves
behind it. The page needs no network and no script. 'weft lab run' writes one beside its results.`,
		Example: `  weft lab report weft-lab-20260102-150405/result.json -o report.html`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVarP(&out, "output", "o", "report.html", "the page, or json: print the result as this version reads it; - = print the page")
	cmd.Flags().StringVar(&runs, "history", "", "show how figures changed, too: the history.jsonl of 'weft bench run --every'")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := result.Read(args[0])
		if err != nil {
			return usageError{err}
		}
		var past []history.Entry
		if runs != "" {
			if past, err = history.Read(runs); err != nil {
				return usageError{err}
			}
		}
		write := func(w io.Writer) error { return report.HTML(w, r, past...) }
		switch out {
		case string(asJSON):
			return writeJSON(cmd.OutOrStdout(), r)
		case "-":
			return write(cmd.OutOrStdout())
		}
		if same(out, args[0]) {
			return usageError{fmt.Errorf("-o %s: this is the result itself: name another file for the page", out)}
		}
		if err := checkTarget(out, pageName); err != nil {
			return usageError{fmt.Errorf("-o %s: %w", out, err)}
		}
		if err := writeFile(out, write); err != nil {
			return fmt.Errorf("report: %w", err)
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "report: %s\n", out)
		return nil
	}
	return cmd
}

// same says that two names are of one file.
func same(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}
