package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weft/perf"
	"weft/perf/report"
)

// newLabReportCommand is `weft lab report`. Its -o names a file, as everybody expects of it; json is that word.
func newLabReportCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "report RESULT.json",
		Short: "Make a page to look at of a result",
		Long: `Make one HTML page of a result: what each contender costs, with intervals, and the curves
behind it. The page needs no network and no script. 'weft lab run' writes one beside its results.`,
		Example: `  weft lab report weft-lab-20260102-150405/result.json -o report.html`,
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().StringVarP(&out, "output", "o", "report.html", "the page, or json: print the result as this version reads it; - = print the page")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := perf.Read(args[0])
		if err != nil {
			return usageError{err}
		}
		write := func(w io.Writer) error { return report.HTML(w, r) }
		switch out {
		case string(asJSON):
			return writeJSON(cmd.OutOrStdout(), r)
		case "-":
			return write(cmd.OutOrStdout())
		}
		if err := writeFile(out, write); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "report: %s\n", out)
		return nil
	}
	return cmd
}
