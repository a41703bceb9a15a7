package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft/perf/contender"
	"weft/perf/result"
	perfrun "weft/perf/run"
	"weft/perf/site"
	"weft/perf/site/netns"
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
	cmd.AddCommand(newLabRunCommand(), newLabReportCommand(), newLabCompareCommand(), newLabPredictCommand(), newLabScenariosCommand(), newLabContendersCommand(), newLabTestsCommand(), newLabCleanCommand(),
		newLabWireguardGoCommand(), newLabGeneratorCommand())
	return cmd
}

// labFlags is what `weft lab run` can be told.
type labFlags struct {
	contenders, tests string
	scenario          string
	layout            string
	family            int
	resultFlags
	plan netns.Plan
}

func newLabRunCommand() *cobra.Command { return newLabRunCommandFor(new(labFlags)) }

// newLabRunCommandFor is the command whose flags are f.
func newLabRunCommandFor(f *labFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a comparison",
		Long: `Run contenders on the same tests in interleaved rounds and print the medians.

A contender is a name of 'weft lab contenders', or a name + "+" + cipher. A test is a name of
'weft lab tests' with its parameters behind colons: udp-rate:size=1024:family=6. size=all stands
for the sizes ` + sizeList() + `.

Results go to the folder --out: report.html (to look at), result.json, result.csv and table.txt. Without --out and without
--json that is a new folder weft-lab-<date>-<time> here.`,
		Example: `  weft lab run
  weft lab run --scenario encryption --repeat 10
  weft lab run --contenders bare,vxlan,tun --tests tcp-stream,udp-rate:size=64 --duration 2s --repeat 3 --json result.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.scenario, "scenario", "", "what to measure: a name of 'weft lab scenarios', or a YAML file; flags given beside it win")
	flags.StringVar(&f.contenders, "contenders", "bare,vxlan,tun,tun-gso,xdp", "what to compare")
	flags.StringVar(&f.tests, "tests", "tcp-stream,tcp-rr,udp-rate:size=64", "what to measure")
	flags.DurationVar(&f.plan.Duration, "duration", 3*time.Second, "of one sample, a search for the highest rate included")
	flags.IntVar(&f.plan.Repeat, "repeat", 5, "measured rounds")
	flags.IntVar(&f.plan.Warmup, "warmup", 1, "rounds before them, dropped")
	flags.IntVar(&f.plan.MTU, "mtu", 1500, "of the underlay, bytes")
	flags.IntVar(&f.plan.Nodes, "nodes", 2, "nodes in each testbed; traffic is between the first two")
	flags.StringVar(&f.layout, "layout", string(testbed.Split), "split: each node has its own cores; free: the scheduler decides")
	flags.IntVar(&f.family, "family", 4, "IP version of tests that do not say their own, 4 or 6")
	flags.IntVar(&f.plan.Queues, "queues", 0, "queue pairs of userspace contenders; 0 = by cores")
	flags.StringVar(&f.plan.Fault, "fault", "", "to see whether compare finds it: STAGE:TIME, a stage of userspace contenders that takes longer for each packet, vxlan:100ns say")
	flags.StringVar(&f.json, "json", "", "write the result to this file")
	flags.StringVar(&f.out, "out", "", "write report.html, result.json, result.csv and table.txt to this folder")
	f.format = formatFlag(cmd)
	return cmd
}

func (f *labFlags) run(cmd *cobra.Command) error {
	mtus, err := f.adopt(cmd.Flags())
	if err == nil {
		err = testbed.Allowed() // before any file is made
	}
	if err != nil {
		return usageError{err}
	}
	if len(mtus) > 1 {
		return f.sweep(cmd, mtus)
	}
	if err := f.complete(); err != nil {
		f.unmake()
		return usageError{err}
	}
	return f.runOne(cmd)
}

// ended is how a command that ran a plan ends, with its exit code; nil = the plan was carried out.
func ended(ctx context.Context, err error) error {
	var wrong *perfrun.UsageError
	var contenders *contender.UnsupportedError
	var sites *site.UnsupportedError
	switch {
	case ctx.Err() != nil:
		return interruptedError{err}
	case errors.As(err, &wrong):
		return usageError{err}
	case errors.As(err, &contenders), errors.As(err, &sites):
		return unsupportedError{err}
	}
	return err
}

// runOne runs one plan, which is complete.
func (f *labFlags) runOne(cmd *cobra.Command) error {
	// Beyond what ends every command: a terminal that goes away. And a second Ctrl-C must not cut
	// the clean-up short.
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	show := newProgress(cmd.ErrOrStderr())
	result, err := netns.Run(ctx, &f.plan, show.event)
	show.end()
	if err != nil {
		f.unmake()
	}
	if err := ended(ctx, err); err != nil {
		return err
	}
	result.Command = reproduce(cmd.Flags())
	if err := f.write(cmd, result); err != nil {
		return err
	}
	return outcome(result)
}

// outcome says what of a result that was written is not as asked for.
func outcome(result *result.Result) error {
	if err := result.Verified().Err(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	silent := result.WithoutMedian()
	switch {
	case len(result.Failed) > 0:
		return fmt.Errorf("lab: %d failed: see the result", len(result.Failed))
	case len(silent) > 0:
		return fmt.Errorf("lab: no sample of %s has an answer: there is no median; run it with a longer --duration", strings.Join(silent, ", of "))
	case len(result.Unsupported) > 0:
		return unsupportedError{errors.New("lab: not every contender can run here: see the result")}
	}
	return nil
}

// reproduce is the command that runs the same comparison: every flag that was set, but not those that say where results go.
func reproduce(flags *pflag.FlagSet) []string {
	command := []string{"weft", "lab", "run"}
	flags.Visit(func(f *pflag.Flag) {
		if f.Name != "json" && f.Name != "out" && f.Name != "output" {
			command = append(command, "--"+f.Name, f.Value.String())
		}
	})
	return command
}

// interruptedError is a run that a signal ended, cleaned up.
type interruptedError struct{ error }

func (e interruptedError) Unwrap() error { return e.error }

// ExitCode implements what exitCode asks for.
func (interruptedError) ExitCode() int { return exitInterrupted }
