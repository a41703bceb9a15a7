// Command weft is the one command: the node daemon, the questions to it, and the lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"weft/api"
	"weft/internal/config"
)

func main() {
	ctx, interrupted := untilSignal(context.Background())
	err := execute(ctx, newRoot(), os.Stderr)
	os.Exit(exitCode(err, interrupted()))
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM; interrupted then says
// whether SIGINT came. A second signal ends the process at once.
func untilSignal(parent context.Context) (ctx context.Context, interrupted func() bool) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		signal.Stop(signals)
		cancel(signalError{s})
	}()
	return ctx, func() bool {
		var s signalError
		return errors.As(context.Cause(ctx), &s) && s.Signal == os.Interrupt
	}
}

type signalError struct{ os.Signal }

func (s signalError) Error() string { return s.String() }

// newRoot builds the whole tree of commands.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft",
		Short: "A packet overlay: the node daemon, the questions to it, and the lab",
		Long: `weft joins the pods of many nodes into one network. The daemon carries their packets; the lab
measures every way to carry them. Configuration: ` + config.DefaultFile + `.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not supported on this machine,
4 daemon not reachable, 5 corrupt (bytes arrived other than they were sent), 130 interrupted (and cleaned up).`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newDaemonCommand(), newConfigCommand(), newStatusCommand(), newNodesCommand(), newPeersCommand(), newRoutesCommand(), newPodsCommand(), newFlowsCommand(),
		newStagesCommand(), newTraceCommand(), newCaptureCommand(), newNetworkCommand(), newPolicyCommand(), newBGPCommand(), newDrainCommand(), newJoinCommand(), newForgetCommand(), newMeshCommand(), newKeysCommand(), newDoctorCommand(), newCleanupCommand(), newCNICommand(), newVersionCommand(), newLabCommand(), newBenchCommand(), newManCommand(),
	)
	addCompletions(root)
	return root
}

// execute runs a command and prints its error. What goes wrong before a command's own code runs is
// the command line's fault: a usageError.
func execute(ctx context.Context, root *cobra.Command, stderr io.Writer) error {
	running := false
	eachCommand(root, func(c *cobra.Command) {
		run := c.RunE
		if run == nil {
			if c.HasSubCommands() { // alone it prints what there is; with an unknown word it must not say "done"
				c.Args, c.RunE = cobra.NoArgs, func(c *cobra.Command, _ []string) error { return c.Help() }
			}
			return
		}
		c.RunE = func(c *cobra.Command, args []string) error { running = true; return run(c, args) }
	})
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !running {
		err = usageError{fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(&plainWriter{to: stderr}, "weft:", strings.ReplaceAll(err.Error(), "\n", "\nweft: "))
	}
	return err
}

func eachCommand(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, do)
	}
}

// socketFlag adds --socket to a command that asks the daemon.
func socketFlag(c *cobra.Command) *string {
	return c.Flags().String("socket", config.DefaultSocket, "the daemon's unix socket (api.socket)")
}

// ask connects to a daemon for the length of one command.
func ask[T any](ctx context.Context, socket string, question func(*api.Client, context.Context) (T, error)) (T, error) {
	c := api.NewClient(socket)
	defer c.Close()
	return question(c, ctx)
}
