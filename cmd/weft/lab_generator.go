package main

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"weft/perf/probe"
)

// newLabGeneratorCommand is `weft lab generator`: the two processes between which the lab measures, inside its namespaces. They know nobody and
// ask nobody who he is; between real hosts there is `weft bench`.
func newLabGeneratorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:    "generator",
		Short:  "Be one end of a test (the lab starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
	}
	c.AddCommand(newLabServeCommand(), newLabProbeCommand())
	return c
}

func newLabServeCommand() *cobra.Command {
	var listen string
	var output *format
	var cfg probe.Config
	c := &cobra.Command{
		Use:     "serve --listen ADDR[:PORT]",
		Short:   "Answer `weft lab generator run` until interrupted",
		Example: "  weft lab generator serve --listen 192.0.2.1 --for 10m",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Listen, err = parseBenchAddr(listen); err != nil {
				return usageError{fmt.Errorf("--listen: %w", err)}
			}
			if cfg.For < 0 {
				return usageError{fmt.Errorf("--for %s: must not be negative", cfg.For)}
			}
			cfg.Ready = func(at netip.AddrPort) {
				ready := struct {
					Listen netip.AddrPort `json:"listen"`
				}{at}
				// A standard output that nobody reads is no reason not to serve.
				_ = show(cmd.OutOrStdout(), *output, ready, func(w io.Writer) { row(w, "listening on "+at.String()) })
			}
			spareProcs()
			return probe.Serve(cmd.Context(), cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", "", fmt.Sprintf("address to listen on; port %d unless given, 0 = any free one", probe.DefaultPort))
	f.Uint16Var(&cfg.DataPort, "data-port", 0, "one port for all data, to let it through a firewall; then one test at a time (0 = a fresh port per test)")
	f.DurationVar(&cfg.For, "for", 0, "end after this long, e.g. 10m (0 = until interrupted)")
	output = formatFlag(c)
	_ = c.MarkFlagRequired("listen")
	return c
}

func newLabProbeCommand() *cobra.Command {
	var to, test string
	var output *format
	var spec probe.Spec
	c := &cobra.Command{
		Use:    "run --to ADDR[:PORT] --test NAME[:KEY=VALUE]…",
		Short:  "Run one test against `weft lab generator serve`",
		Hidden: true,
		Long:   "Run one test against `weft lab generator serve`.\n\n" + benchTests(),
		Example: "  weft lab generator run --to 192.0.2.1 --test tcp-stream:flows=4 --duration 10s\n" +
			"  weft lab generator run --to [2001:db8::1]:8479 --test udp-rate:size=256 -o json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			selection, err := probe.Parse(test)
			if err != nil {
				return usageError{fmt.Errorf("--test: %w", err)}
			}
			if spec.Target, err = parseBenchAddr(to); err != nil {
				return usageError{fmt.Errorf("--to: %w", err)}
			}
			spec.Test, spec.Params = selection.Test, selection.Params
			if err := spec.Validate(); err != nil {
				return usageError{err}
			}
			spareProcs()
			result, err := probe.Run(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if err := show(cmd.OutOrStdout(), *output, result, func(w io.Writer) { printBench(w, result) }); err != nil {
				return err
			}
			return result.Err()
		},
	}
	f := c.Flags()
	f.StringVar(&to, "to", "", fmt.Sprintf("address of the server; port %d unless given", probe.DefaultPort))
	f.StringVar(&test, "test", "", "test to run, with its parameters")
	f.DurationVar(&spec.Duration, "duration", 3*time.Second, "length of the test; a search for a rate fits into it")
	f.StringVar(&spec.Congestion, "congestion", "cubic", "TCP congestion control")
	output = formatFlag(c)
	_ = c.MarkFlagRequired("to")
	_ = c.MarkFlagRequired("test")
	return c
}
