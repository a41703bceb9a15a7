package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

func newLabContendersCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "contenders",
		Short: "List what can be compared, and whether this machine can run it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return labUsage(err)
			}
			return listContenders(cmd.OutOrStdout(), output)
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// labContender is a line of `weft lab contenders`.
type labContender struct {
	Name      string `json:"name"`
	About     string `json:"about"`
	Ciphers   bool   `json:"ciphers"` // "+cipher" may follow the name
	Supported bool   `json:"supported"`
	Reason    string `json:"reason,omitempty"`
}

func listContenders(w io.Writer, output string) error {
	var list []labContender
	for _, row := range contender.Rows() {
		c := labContender{Name: row.Name, About: row.About, Ciphers: row.Sealable, Supported: true}
		if err := row.Needs(); err != nil {
			c.Supported, c.Reason = false, err.Error()
		}
		list = append(list, c)
	}
	if output == "json" {
		return writeJSON(w, list)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "contender\tstands for\there")
	for _, c := range list {
		here := "yes"
		if !c.Supported {
			here = "no: " + c.Reason
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.About, here)
	}
	return t.Flush()
}

func newLabTestsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "tests",
		Short: "List the tests, their parameters and figures",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return labUsage(err)
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), probe.Tests)
			}
			return listTests(cmd.OutOrStdout())
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func listTests(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "test\tmeasures\tparameters (default)\tfigures")
	for _, test := range probe.Tests {
		var params, figures []string
		for _, p := range test.Params {
			params = append(params, fmt.Sprintf("%s (%v)", p.Name, p.Default))
		}
		for _, m := range test.Metrics {
			figures = append(figures, m.Name+": "+m.Unit)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", test.Name, test.About, strings.Join(params, ", "), strings.Join(figures, ", "))
	}
	return t.Flush()
}

func newLabCleanCommand() *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove what labs that were killed left behind",
		Long: `Remove the namespaces, processes and folders of labs whose process has ended. A lab that
ends by itself, or by Ctrl-C, leaves none.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return labUsage(err)
			}
			return cleanLabs(cmd.OutOrStdout(), all, output)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also of labs that are running")
	outputFlag(cmd, &output)
	return cmd
}

func cleanLabs(w io.Writer, all bool, output string) error {
	which := testbed.Dead
	if all {
		which = testbed.All
	}
	left, err := testbed.Find(which)
	if err != nil {
		return err
	}
	if err := left.Remove(); err != nil {
		return err
	}
	if output == "json" {
		return writeJSON(w, left)
	}
	if left.Empty() {
		fmt.Fprintln(w, "nothing is left of any lab")
		return nil
	}
	for _, n := range left.Namespaces {
		fmt.Fprintln(w, "removed namespace", n)
	}
	for _, p := range left.Processes {
		fmt.Fprintln(w, "killed process", p)
	}
	for _, d := range left.Dirs {
		fmt.Fprintln(w, "removed folder", d)
	}
	return nil
}

// outputFlag adds -o.
func outputFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVarP(to, "output", "o", "text", "text or json")
}
