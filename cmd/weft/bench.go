package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft/perf/agent"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// newBenchCommand is `weft bench`: the lab between real hosts, by agents.
func newBenchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure what a path, or an overlay on it, costs between real hosts",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(newBenchServeCommand(), newBenchRunCommand(), newBenchGeneratorCommand())
	return c
}

// identityFlags say how the two ends of a control connection know each other.
type identityFlags struct{ secret, cert, key, ca string }

func (f *identityFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.secret, "secret", "", "file with a secret that the agents and this command share, of at least 16 random bytes")
	flags.StringVar(&f.cert, "cert", "", "instead of a secret: this end's certificate, PEM")
	flags.StringVar(&f.key, "key", "", "its key, PEM")
	flags.StringVar(&f.ca, "ca", "", "the authority that both ends' certificates are of, PEM")
}

func (f *identityFlags) identity() (*agent.Identity, error) {
	certificates := f.cert != "" && f.key != "" && f.ca != ""
	switch {
	case f.secret != "" && f.cert+f.key+f.ca != "":
		return nil, fmt.Errorf("a secret and certificates: give one of the two")
	case f.secret != "":
		return agent.FromSecret(f.secret)
	case certificates:
		return agent.FromCertificates(f.cert, f.key, f.ca)
	}
	return nil, fmt.Errorf("nobody may measure for just anybody: give --secret FILE, or --cert, --key and --ca")
}

func newBenchServeCommand() *cobra.Command {
	var listen string
	var output *format
	var id identityFlags
	var cfg agent.Config
	c := &cobra.Command{
		Use:   "serve",
		Short: "Be the agent that measures on this host for `weft bench run`",
		Long: `Be the agent that measures on this host for 'weft bench run', until interrupted. It serves one client at a time, which
has to prove that it has the same secret, or a certificate of the same authority, and does for it nothing but the tests. It sends to nobody
who has not proven, over the path itself, to expect it; and no more than the limits here allow.

It needs the control port (--listen), and two more for the generators: TCP --data-port, and TCP and UDP the one after it. An
overlay of its own needs UDP 8482, 8484 and on, one for each contender. It runs without privileges, but overlays of its own need root.`,
		Example: "  weft bench serve --secret /etc/weft/bench.secret\n  weft bench serve --secret /etc/weft/bench.secret --max-rate 1e9 --max-cores 1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("listen") && !testbed.HasIPv6() {
				listen = "0.0.0.0"
			}
			var err error
			if cfg.Listen, err = parseBenchAddr(listen); err != nil {
				return usageError{fmt.Errorf("--listen: %w", err)}
			}
			switch {
			case cfg.Limit.Bits < 0 || cfg.Limit.Packets < 0 || cfg.Cores < 0:
				return usageError{fmt.Errorf("a limit must not be negative; 0 is none")}
			case cfg.Longest < time.Second:
				return usageError{fmt.Errorf("--max-time %s: give at least 1s", cfg.Longest)}
			case cfg.Data == 0 || cfg.Data == 65535:
				return usageError{fmt.Errorf("--data-port %d: give a port that has one after it", cfg.Data)}
			}
			if cfg.Identity, err = id.identity(); err != nil {
				return usageError{err}
			}
			if cfg.Program, err = os.Executable(); err != nil {
				return err
			}
			cfg.Version, cfg.Log = version().String(), newLog(cmd.ErrOrStderr())
			cfg.Ready = func(at netip.AddrPort) {
				ready := struct {
					Listen netip.AddrPort `json:"listen"`
				}{at}
				// A standard output that nobody reads is no reason not to serve.
				_ = show(cmd.OutOrStdout(), *output, ready, func(w io.Writer) { row(w, "listening on "+at.String()) })
			}
			return agent.Serve(cmd.Context(), cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", "::", fmt.Sprintf("address to listen on; port %d unless given, 0 = any free one", agent.DefaultPort))
	f.Uint16Var(&cfg.Data, "data-port", agent.DefaultData, "first of the generators' two ports")
	f.Float64Var(&cfg.Limit.Bits, "max-rate", 0, "send at most so many bit/s of payload, whatever is asked for (0 = no limit)")
	f.Float64Var(&cfg.Limit.Packets, "max-packets", 0, "send at most so many packet/s (0 = no limit)")
	f.DurationVar(&cfg.Longest, "max-time", time.Minute, "run no test for longer")
	f.IntVar(&cfg.Cores, "max-cores", 0, "have generators use at most so many processors (0 = all)")
	f.BoolVar(&cfg.XDP, "xdp", false, "let contenders with AF_XDP outside attach a program to this host's own device while they are measured; some drivers reset the link for that")
	id.add(c)
	output = formatFlag(c)
	return c
}

// newBenchGeneratorCommand is `weft bench generator`: the process that an agent starts for one test, or to answer one. It is told what to do on
// its standard input, and is of no use to people.
func newBenchGeneratorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "generator",
		Short:  "Be a load generator (an agent starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spareProcs()
			return agent.Generator(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
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
