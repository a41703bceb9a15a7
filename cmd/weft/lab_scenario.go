package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/perf/scenario"
)

func newLabScenariosCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scenarios",
		Short: "List what can be measured by name: weft lab run --scenario NAME",
		Args:  cobra.NoArgs,
	}
	form := formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := scenario.All()
		if err != nil {
			return err
		}
		return show(cmd.OutOrStdout(), *form, all, func(w io.Writer) {
			row(w, "scenario", "answers", "contenders", "tests")
			for _, s := range all {
				row(w, s.Name, s.About, strings.Join(s.Contenders, ","), strings.Join(s.Tests, ","))
			}
		})
	}
	return cmd
}

// adopt takes from the scenario what no flag was given for, and returns the MTUs to run with.
func (f *labFlags) adopt(flags *pflag.FlagSet) (mtus []int, err error) {
	if f.scenario == "" {
		return []int{f.plan.MTU}, nil
	}
	s, err := scenario.Load(f.scenario)
	if err != nil {
		return nil, err
	}
	set := func(flag, value string) {
		if value != "" && !flags.Changed(flag) && err == nil {
			err = flags.Set(flag, value)
		}
	}
	set("contenders", strings.Join(s.Contenders, ","))
	set("tests", strings.Join(s.Tests, ","))
	set("layout", string(s.Layout))
	if s.Duration > 0 {
		set("duration", s.Duration.String())
	}
	for _, n := range []struct {
		flag  string
		value *int
	}{{"repeat", s.Repeat}, {"warmup", s.Warmup}, {"nodes", s.Nodes}, {"family", s.Family}, {"queues", s.Queues}} {
		if n.value != nil {
			set(n.flag, fmt.Sprint(*n.value))
		}
	}
	if s.MTU == nil || flags.Changed("mtu") {
		return []int{f.plan.MTU}, err
	}
	f.plan.MTU = s.MTU[0]
	return s.MTU, err
}

// sweep runs the plan once for each MTU of the underlay; results of different ones are apart, in folders mtu-1500, …
func (f *labFlags) sweep(cmd *cobra.Command, mtus []int) error {
	if f.json != "" || *f.format == asJSON {
		return usageError{fmt.Errorf("scenario %s has a result for each of %d MTUs: give --out for a folder, or one --mtu", f.scenario, len(mtus))}
	}
	out := f.out
	if out == "" {
		out = time.Now().Format("weft-lab-20060102-150405")
	}
	var runs []*labFlags
	for _, mtu := range mtus {
		one := *f
		one.plan.MTU, one.out = mtu, filepath.Join(out, fmt.Sprintf("mtu-%d", mtu))
		runs = append(runs, &one)
		if err := one.complete(); err != nil { // of the last one before the first one measures
			for _, r := range runs {
				r.unmake()
			}
			return usageError{err}
		}
	}
	var failed []error
	for i, mtu := range mtus {
		fmt.Fprintf(cmd.OutOrStdout(), "underlay MTU %d\n", mtu)
		err := runs[i].runOne(cmd)
		var wrong usageError
		var interrupted interruptedError
		if errors.As(err, &wrong) || errors.As(err, &interrupted) {
			return err
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("MTU %d: %w", mtu, err))
		}
	}
	return errors.Join(failed...)
}
