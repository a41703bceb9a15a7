package main

import (
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/perf/probe"
)

// newBenchCommand is `weft bench`: the lab's load generators between any two hosts.
func newBenchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure what a path carries, between any two hosts",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(newBenchServeCommand(), newBenchRunCommand())
	return c
}

func newBenchServeCommand() *cobra.Command {
	var listen string
	var output *format
	var cfg probe.Config
	c := &cobra.Command{
		Use:     "serve --listen ADDR[:PORT]",
		Short:   "Answer `weft bench run` until interrupted",
		Example: "  weft bench serve --listen 192.0.2.1 --for 10m",
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

func newBenchRunCommand() *cobra.Command {
	var to, test string
	var output *format
	var spec probe.Spec
	c := &cobra.Command{
		Use:   "run --to ADDR[:PORT] --test NAME[:KEY=VALUE]…",
		Short: "Run one test against `weft bench serve`",
		Long:  "Run one test against `weft bench serve`.\n\n" + benchTests(),
		Example: "  weft bench run --to 192.0.2.1 --test tcp-stream:flows=4 --duration 10s\n" +
			"  weft bench run --to [2001:db8::1]:8479 --test udp-rate:size=256 -o json",
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

// spareProcs gives the Go scheduler more processors than there are threads at work: a thread that comes back from a
// long system call then always finds one free, and never has to be woken by another. It adds no threads.
func spareProcs() { runtime.GOMAXPROCS(runtime.NumCPU() + 8) }

// parseBenchAddr reads ADDR or ADDR:PORT, IPv6 with or without brackets.
func parseBenchAddr(text string) (netip.AddrPort, error) {
	bare := text
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		bare = text[1 : len(text)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return netip.AddrPortFrom(a, probe.DefaultPort), nil
	}
	at, err := netip.ParseAddrPort(text)
	if err != nil {
		return at, fmt.Errorf("%q is not an address or address:port, as in 192.0.2.1:%d or [2001:db8::1]:%d",
			text, probe.DefaultPort, probe.DefaultPort)
	}
	return at, nil
}

// benchTests is the list of tests for the help text.
func benchTests() string {
	var b strings.Builder
	b.WriteString("Tests:\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, t := range probe.Tests {
		var params []string
		for _, p := range t.Params {
			params = append(params, fmt.Sprintf("%s=%v", p.Name, p.Default))
		}
		fmt.Fprintf(w, "  %s\t%s\t(%s)\n", t.Name, t.About, strings.Join(params, " "))
	}
	w.Flush()
	return strings.TrimRight(b.String(), "\n")
}
