package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"weft/perf/compare"
	"weft/perf/result"
)

// newLabCompareCommand is `weft lab compare`: what changed between two results.
func newLabCompareCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compare A.json B.json",
		Short: "Say what changed between two results beyond their noise",
		Long: `Compare the rows of result B with those of result A, which came before: medians, their ratio with
its 95 % interval, and how probable a difference at least as clear would be by chance (Mann-Whitney U).

A row is called different where that is less than --alpha, by itself and relative to the contender
--control in the same rounds: what the whole machine gave may have changed in between. Results
whose settings differ are not compared. A difference is no failure unless --fail-if-worse is given.`,
		Example: `  weft lab compare before/result.json after/result.json
  weft lab compare --all --control none a.json b.json`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: resultFiles,
	}
	flags := cmd.Flags()
	alpha := flags.Float64("alpha", compare.Alpha, "call a row different where chance explains it with less than this probability")
	control := flags.String("control", "bare", "contender that no change touches; none = judge every row by itself")
	all := flags.Bool("all", false, "print the rows without a difference, too")
	fail := flags.Bool("fail-if-worse", false, "exit with 1 where a row is worse, or where B is corrupt")
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !(*alpha > 0 && *alpha < 0.5) {
			return usageError{fmt.Errorf("alpha %v: give a probability above 0 and below 0.5", *alpha)}
		}
		o := compare.Options{Alpha: *alpha, Control: *control}
		if o.Control == "none" {
			o.Control = ""
		}
		// The default is for results that have it; who names another one means it.
		c, err := compareFiles(args[0], args[1], o, cmd.Flags().Changed("control"))
		if err != nil {
			return err
		}
		if err := show(cmd.OutOrStdout(), *form, c, func(w io.Writer) { printComparison(w, c, *all) }); err != nil {
			return err
		}
		if *fail && slices.ContainsFunc(c.Corrupt, func(o compare.Corruption) bool { return o.B.Corrupt > 0 }) {
			return fmt.Errorf("lab: %s is corrupt: see above", args[1])
		}
		if n := c.Count(compare.Worse); *fail && n > 0 {
			return fmt.Errorf("lab: %d worse: see above", n)
		}
		return nil
	}
	return cmd
}

// compareFiles compares two results, both of which must have the control if it is meant.
func compareFiles(fileA, fileB string, o compare.Options, meant bool) (*compare.Comparison, error) {
	a, err := result.Read(fileA)
	if err != nil {
		return nil, usageError{err}
	}
	b, err := result.Read(fileB)
	if err != nil {
		return nil, usageError{err}
	}
	for file, r := range map[string]*result.Result{fileA: a, fileB: b} {
		if has := contenders(r); meant && o.Control != "" && !slices.Contains(has, o.Control) {
			return nil, usageError{fmt.Errorf("--control %s: %s has no such contender, it has %s: name one of both results, or none", o.Control, file, strings.Join(has, ", "))}
		}
	}
	c, err := compare.Results(a, b, o)
	var incomparable *compare.IncomparableError
	switch {
	case errors.As(err, &incomparable):
		return nil, usageError{fmt.Errorf("%s, %s: %w", fileA, fileB, err)}
	case err != nil:
		return nil, usageError{fmt.Errorf("with %s as a and %s as b: %w", fileA, fileB, err)}
	}
	c.A.File, c.B.File = fileA, fileB
	return c, nil
}

// contenders are those that a result has rows of.
func contenders(r *result.Result) (names []string) {
	for _, row := range r.Results {
		if !slices.Contains(names, row.Contender) {
			names = append(names, row.Contender)
		}
	}
	return names
}

func printComparison(w io.Writer, c *compare.Comparison, all bool) {
	fmt.Fprintf(w, "A: %s, weft %s\nB: %s, weft %s\n", c.A.File, c.A.Weft, c.B.File, c.B.Weft)
	for _, d := range c.Fingerprint {
		fmt.Fprintf(w, "%s differs: %s, %s\n", d.Name, d.A, d.B)
	}
	fmt.Fprintf(w, "%s; different: p ≤ %v\n\n", c.Method, c.Alpha)
	for _, o := range c.Corrupt {
		fmt.Fprintf(w, "corrupt: %s: %d of %d bytes in A, %d of %d in B arrived other than they were sent: its figures are not compared\n",
			o.Name(), o.A.Corrupt, o.A.Verified, o.B.Corrupt, o.B.Verified)
	}
	shown := 0
	for _, r := range c.Rows {
		if r.Verdict == compare.Same && !all {
			continue
		}
		if shown == 0 {
			row(w, "row", "A", "B", "unit", "B/A", "95 %", "p", "p by control", "")
		}
		shown++
		row(w, r.Name(), side(r.A), side(r.B), r.Unit, optional("%.3f", r.Ratio), interval("%.3f", r.Low, r.High),
			fmt.Sprintf("%.2g", r.P), optional("%.2g", r.PControl), r.Verdict)
	}
	if shown > 0 {
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, "%d rows: %d better, %d worse, %d changed, %d no difference", len(c.Rows),
		c.Count(compare.Better), c.Count(compare.Worse), c.Count(compare.Changed), c.Count(compare.Same))
	if n := c.Count(compare.Corrupt); n > 0 {
		fmt.Fprintf(w, ", %d corrupt", n)
	}
	if n := c.Count(compare.TooFew); n > 0 {
		fmt.Fprintf(w, ", %d with too few rounds to tell: run with a larger --repeat", n)
	}
	if n := c.Count(compare.Unanswered); n > 0 {
		fmt.Fprintf(w, ", %d unanswered", n)
	}
	fmt.Fprintln(w)
	if a, b := c.Unanswered(); a+b > 0 {
		fmt.Fprintf(w, "samples without an answer, left out: %d in A, %d in B\n", a, b)
	}
	printStages(w, c, all)
	for _, only := range []struct {
		file string
		rows []string
	}{{"A", c.OnlyA}, {"B", c.OnlyB}} {
		if len(only.rows) > 0 {
			fmt.Fprintf(w, "only in %s: %s\n", only.file, strings.Join(only.rows, "; "))
		}
	}
}

// printStages prints where a packet's nanoseconds moved.
func printStages(w io.Writer, c *compare.Comparison, all bool) {
	shown := 0
	for _, s := range c.Stages {
		if !all && (s.Verdict == compare.Same || s.Verdict == compare.TooFew) {
			continue
		}
		if shown == 0 {
			fmt.Fprintln(w)
			row(w, "stage", "A", "B", "unit", "B-A", "95 %", "p", "p by control", "")
		}
		shown++
		row(w, s.Name(), side(s.A), side(s.B), "ns", optional("%+.3g", s.Shift), interval("%+.3g", s.Low, s.High),
			optional("%.2g", s.P), optional("%.2g", s.PControl), s.Verdict)
	}
	if len(c.Stages) == 0 {
		return
	}
	if shown > 0 {
		fmt.Fprintln(w)
	}
	counts := map[compare.Verdict]int{}
	for _, s := range c.Stages {
		counts[s.Verdict]++
	}
	fmt.Fprintf(w, "%d stages of lanes: %d longer, %d shorter, %d new, %d gone, %d no difference", len(c.Stages),
		counts[compare.Worse], counts[compare.Better], counts[compare.New], counts[compare.Gone], counts[compare.Same])
	if n := counts[compare.TooFew]; n > 0 {
		fmt.Fprintf(w, ", %d with too few rounds that timed them", n)
	}
	fmt.Fprintln(w)
	for _, s := range c.StageSums {
		if s.Longer+s.Shorter > 0 {
			fmt.Fprintf(w, "%s %s: longer in %d, shorter in %d of %d; %+.3g ns a packet\n", s.Contender, s.Stage, s.Longer, s.Shorter, s.Lanes, s.Shift)
		}
	}
}

// side prints a median, or that there is none.
func side(s compare.Side) string {
	if s.N == 0 && s.Unanswered > 0 {
		return string(compare.Unanswered)
	}
	if !s.Median.Known() {
		return "-"
	}
	return figure(float64(s.Median))
}

// figure prints a median in three digits or four.
func figure(v float64) string {
	if v >= 1e4 {
		return short(v)
	}
	return fmt.Sprintf("%.4g", v)
}

func optional(form string, v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf(form, *v)
}

func interval(form string, low, high *float64) string {
	if low == nil || high == nil {
		return "-"
	}
	return fmt.Sprintf(form+" to "+form, *low, *high)
}

// resultFiles completes what a command reads that takes results.
func resultFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
}
