package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// labContender is a line of `weft lab contenders`.
type labContender struct {
	Name      string `json:"name"`
	About     string `json:"about"`
	Ciphers   bool   `json:"ciphers"` // "+cipher" may follow the name
	Supported bool   `json:"supported"`
	Reason    string `json:"reason,omitempty"` // why it is not
	Preset    string `json:"preset,omitempty"` // the contender that a preset stands for
}

func newLabContendersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "contenders",
		Short: "List what can be compared, and whether this machine can run it",
		Args:  cobra.NoArgs,
	}
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var list []labContender
		for _, r := range contender.Rows() {
			c := labContender{Name: r.Name, About: r.About, Ciphers: r.Sealable, Supported: true}
			if err := r.Needs(); err != nil {
				c.Supported, c.Reason = false, err.Error()
			}
			list = append(list, c)
		}
		for _, p := range contender.Presets() {
			c, err := preset(p)
			if err != nil {
				return err
			}
			list = append(list, c)
		}
		return show(cmd.OutOrStdout(), *form, list, func(w io.Writer) {
			row(w, "contender", "stands for", "here")
			for _, c := range list {
				here := "yes"
				if !c.Supported {
					here = "no: " + c.Reason
				}
				about := c.About
				if c.Preset != "" {
					about += " = " + c.Preset
				}
				row(w, c.Name, about, here)
			}
			row(w, "exec:FILE", "a program of your own, see docs/reference.md", "-")
		})
	}
	return cmd
}

// preset describes a whole system.
func preset(p contender.Preset) (labContender, error) {
	c := labContender{Name: p.Name, About: p.About, Preset: p.Contender, Supported: true}
	parsed, err := contender.Parse(p.Name)
	if err != nil {
		return c, err
	}
	if err := parsed[0].Needs(); err != nil {
		c.Supported, c.Reason = false, err.Error()
	}
	return c, nil
}

func newLabTestsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tests",
		Short: "List the tests, their parameters and figures",
		Args:  cobra.NoArgs,
	}
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return show(cmd.OutOrStdout(), *form, probe.Tests, func(w io.Writer) {
			row(w, "test", "measures", "parameters (default)", "figures")
			for _, test := range probe.Tests {
				var params, figures []string
				for _, p := range test.Params {
					params = append(params, fmt.Sprintf("%s (%v)", p.Name, p.Default))
				}
				for _, m := range test.Metrics {
					figures = append(figures, m.Name+": "+m.Unit)
				}
				row(w, test.Name, test.About, strings.Join(params, ", "), strings.Join(figures, ", "))
			}
		})
	}
	return cmd
}

func newLabCleanCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove what labs that were killed left behind",
		Long: `Remove the namespaces, processes and folders of labs whose process has ended. A lab that
ends by itself, or by Ctrl-C, leaves none.`,
		Args: cobra.NoArgs,
	}
	all := cmd.Flags().Bool("all", false, "also of labs that are running")
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		which := testbed.Dead
		if *all {
			which = testbed.All
		}
		left, err := testbed.Find(which)
		if err != nil {
			return err
		}
		if err := left.Remove(); err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, left, func(w io.Writer) {
			if left.Empty() {
				row(w, "nothing is left of any lab")
			}
			for _, n := range left.Namespaces {
				row(w, "removed namespace "+n)
			}
			for _, p := range left.Processes {
				row(w, "killed process", p)
			}
			for _, d := range left.Dirs {
				row(w, "removed folder "+d)
			}
		})
	}
	return cmd
}
