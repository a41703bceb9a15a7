package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/perf"
	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/report"
	"weft/perf/testbed"
)

// newLabCommand is `weft lab`: measure ways to carry packets against each other.
func newLabCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Measure ways to carry packets against each other",
		Long: `The lab builds small networks out of namespaces, runs contenders in them on the same
work, and says what each costs: throughput, latency, packet rates, processor time, lost packets.
It needs root. It touches only namespaces it made and leaves nothing behind.`,
	}
	cmd.AddCommand(newLabRunCommand(), newLabContendersCommand(), newLabTestsCommand(), newLabCleanCommand(),
		newLabWireguardGoCommand())
	return cmd
}

// labFlags is what `weft lab run` can be told.
type labFlags struct {
	contenders, tests string
	layout            string
	family            int
	json, out         string
	format            *format
	plan              perf.Plan
}

func newLabRunCommand() *cobra.Command {
	var f labFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a comparison",
		Long: `Run contenders on the same tests in interleaved rounds and print the medians.

A contender is a name of 'weft lab contenders', or a name + "+" + cipher. A test is a name of
'weft lab tests' with its parameters behind colons: udp-rate:size=1024:family=6. size=all stands
for the sizes ` + sizeList() + `.

Results go to the folder --out: result.json, result.csv and table.txt. Without --out and without
--json that is a new folder weft-lab-<date>-<time> here.`,
		Example: `  weft lab run
  weft lab run --contenders bare,vxlan,tun --tests tcp-stream,udp-rate:size=64 --duration 2s --repeat 3 --json result.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.contenders, "contenders", "bare,vxlan,tun", "what to compare")
	flags.StringVar(&f.tests, "tests", "tcp-stream,tcp-rr,udp-rate:size=64", "what to measure")
	flags.DurationVar(&f.plan.Duration, "duration", 3*time.Second, "of one sample, a search for the highest rate included")
	flags.IntVar(&f.plan.Repeat, "repeat", 5, "measured rounds")
	flags.IntVar(&f.plan.Warmup, "warmup", 1, "rounds before them, dropped")
	flags.IntVar(&f.plan.MTU, "mtu", 1500, "of the underlay, bytes")
	flags.IntVar(&f.plan.Nodes, "nodes", 2, "nodes in each testbed; traffic is between the first two")
	flags.StringVar(&f.layout, "layout", string(testbed.Split), "split: each node has its own cores; free: the scheduler decides")
	flags.IntVar(&f.family, "family", 4, "IP version of tests that do not say their own, 4 or 6")
	flags.IntVar(&f.plan.Queues, "queues", 0, "queue pairs of userspace contenders; 0 = by cores")
	flags.StringVar(&f.json, "json", "", "write the result to this file")
	flags.StringVar(&f.out, "out", "", "write result.json, result.csv and table.txt to this folder")
	f.format = formatFlag(cmd)
	return cmd
}

func (f *labFlags) run(cmd *cobra.Command) error {
	if err := f.complete(); err != nil {
		return usageError{err}
	}
	// Beyond what ends every command: a terminal that goes away. And a second Ctrl-C must not cut
	// the clean-up short.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	show := newProgress(cmd.ErrOrStderr())
	result, err := perf.Run(ctx, &f.plan, show.event)
	show.end()
	var wrong *perf.UsageError
	switch {
	case ctx.Err() != nil:
		return interruptedError{err}
	case errors.As(err, &wrong):
		return usageError{err}
	case err != nil:
		return err
	}
	if err := f.write(cmd, result); err != nil {
		return err
	}
	switch {
	case len(result.Failed) > 0:
		return fmt.Errorf("lab: %d failed: see the result", len(result.Failed))
	case len(result.Unsupported) > 0:
		return unsupportedError{errors.New("lab: not every contender can run here: see the result")}
	}
	return nil
}

// complete turns the flags into a plan.
func (f *labFlags) complete() (err error) {
	p := &f.plan
	if f.family != 4 && f.family != 6 {
		return fmt.Errorf("family %d: give 4 or 6", f.family)
	}
	if p.Contenders, err = contender.Parse(f.contenders); err != nil {
		return err
	}
	if p.Tests, err = probe.ParseList(completeTests(f.tests, f.family)); err != nil {
		return err
	}
	if p.Layout, err = testbed.ParseLayout(f.layout); err != nil {
		return err
	}
	if err := p.Check(); err != nil {
		return err
	}
	if f.out == "" && f.json == "" {
		f.out = time.Now().Format("weft-lab-20060102-150405")
	}
	// Now, not after ten minutes of measuring.
	for _, path := range []string{filepath.Join(f.out, "x"), f.json} {
		if path == "x" || path == "" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
	p.Congestion, p.Version = "cubic", version().String()
	p.Weft, err = os.Executable()
	return err
}

// allSizes are the lengths of inner IP packets that size=all stands for.
func allSizes() []string { return []string{"64", "256", "512", "1024", "1360"} }

func sizeList() string { return strings.Join(allSizes(), ", ") }

// completeTests spells out size=all, and the family of tests that do not say theirs.
func completeTests(list string, family int) string {
	var tests []string
	for t := range strings.SplitSeq(list, ",") {
		if !strings.Contains(t, ":family=") {
			t += fmt.Sprintf(":family=%d", family)
		}
		if !strings.Contains(t+":", ":size=all:") {
			tests = append(tests, t)
			continue
		}
		for _, size := range allSizes() {
			tests = append(tests, strings.Replace(t, ":size=all", ":size="+size, 1))
		}
	}
	return strings.Join(tests, ",")
}

// write puts the result where it was asked for.
func (f *labFlags) write(cmd *cobra.Command, r *perf.Result) error {
	out := cmd.OutOrStdout()
	if *f.format == asJSON {
		if err := writeJSON(out, r); err != nil {
			return err
		}
	} else if err := report.Table(out, r); err != nil {
		return err
	}
	asJSON := func(w io.Writer) error { return writeJSON(w, r) }
	if f.json != "" {
		if err := writeFile(f.json, asJSON); err != nil {
			return err
		}
	}
	if f.out == "" {
		return nil
	}
	err := errors.Join(
		writeFile(filepath.Join(f.out, "result.json"), asJSON),
		writeFile(filepath.Join(f.out, "result.csv"), func(w io.Writer) error { return report.CSV(w, r) }),
		writeFile(filepath.Join(f.out, "table.txt"), func(w io.Writer) error { return report.Table(w, r) }),
	)
	if err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "results: %s\n", f.out)
	}
	return err
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("results: write %s: %w", path, err)
	}
	return nil
}

// interruptedError is a run that a signal ended, cleaned up.
type interruptedError struct{ error }

func (e interruptedError) Unwrap() error { return e.error }

// ExitCode implements what exitCode asks for.
func (interruptedError) ExitCode() int { return exitInterrupted }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
