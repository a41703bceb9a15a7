package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weft/perf/contender"
	"weft/perf/site/remote"
)

// benchFlags is what `weft bench run` can be told.
type benchFlags struct {
	resultFlags
	contenders, tests string
	family            int
	paths             []string
	dry               bool
	id                identityFlags
	plan              remote.Plan
}

func newBenchRunCommand() *cobra.Command {
	f := &benchFlags{}
	cmd := &cobra.Command{
		Use:   "run HOST HOST...",
		Short: "Measure between hosts that run `weft bench serve`",
		Long: `Measure between every ordered pair of hosts, each of which runs 'weft bench serve': the underlay itself (contender bare), overlays of
weft's own that are made for this beside whatever the host has and are gone afterwards, and paths that somebody else made (--path).
The tests, rounds and results are those of 'weft lab run'.

A HOST is [NAME=]ADDR[:PORT], by an address that the host itself has: it is also the host's place in the underlay. Overlays are
between pods of their own, as in the lab; bare is between the hosts themselves. This command needs no privileges.

Results go to the folder --out: report.html (to look at), result.json, result.csv and table.txt. Without --out and without
--json that is a new folder weft-bench-<date>-<time> here. 'weft lab compare' says what changed since yesterday's.`,
		Example: `  weft bench run 192.0.2.1 192.0.2.2 --secret bench.secret
  weft bench run a=192.0.2.1 b=192.0.2.2 --secret bench.secret --contenders bare,tun,tun+auto --tests tcp-stream,tcp-rr
  weft bench run 192.0.2.1 192.0.2.2 --secret bench.secret --path 10.0.1.5=10.0.2.7`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.contenders, "contenders", "bare", "what to measure besides others' paths: bare, and modes of weft with a tunnel; none = only paths")
	flags.StringVar(&f.tests, "tests", "tcp-stream,tcp-rr,udp-rate:size=64", "what to measure, see 'weft lab tests'")
	flags.StringArrayVar(&f.paths, "path", nil, "A=B: measure a path that somebody else made, both ways, between an address A of one host and B of another; may be given again")
	flags.DurationVar(&f.plan.Duration, "duration", 3*time.Second, "of one sample, a search for the highest rate included")
	flags.IntVar(&f.plan.Repeat, "repeat", 5, "measured rounds")
	flags.IntVar(&f.plan.Warmup, "warmup", 1, "rounds before them, dropped")
	flags.IntVar(&f.family, "family", 0, "IP version of tests that do not say their own, 4 or 6; 0 = that of the first host's address")
	flags.StringVar(&f.plan.Congestion, "congestion", "cubic", "TCP congestion control")
	flags.BoolVar(&f.dry, "dry-run", false, "say what would be sent, by whom to whom, and for how long; connect to nobody")
	flags.StringVar(&f.json, "json", "", "write the result to this file")
	flags.StringVar(&f.out, "out", "", "write report.html, result.json, result.csv and table.txt to this folder")
	f.id.add(cmd)
	f.format = formatFlag(cmd)
	return cmd
}

// complete turns the flags into a plan.
func (f *benchFlags) complete(args []string) (err error) {
	p := &f.plan
	for _, arg := range args {
		name, text, named := strings.Cut(arg, "=")
		if !named {
			name, text = "", arg
		}
		at, err := parseBenchAddr(text)
		if err != nil {
			return fmt.Errorf("host %s: %w", arg, err)
		}
		if slices.ContainsFunc(p.Hosts, func(h remote.Host) bool { return h.At == at || named && h.Name == name }) {
			return fmt.Errorf("host %s is named twice", arg)
		}
		p.Hosts = append(p.Hosts, remote.Host{Name: name, At: at})
	}
	if f.family == 0 {
		f.family = 6
		if p.Hosts[0].At.Addr().Unmap().Is4() {
			f.family = 4
		}
	}
	if f.family != 4 && f.family != 6 {
		return fmt.Errorf("family %d: give 4 or 6", f.family)
	}
	if f.contenders != "none" {
		list, err := contender.Parse(f.contenders)
		if err != nil {
			return err
		}
		for _, c := range list {
			p.Contenders = append(p.Contenders, c.Name)
		}
	}
	for _, path := range f.paths {
		left, right, ok := strings.Cut(path, "=")
		a, errA := netip.ParseAddr(left)
		b, errB := netip.ParseAddr(right)
		if !ok || errA != nil || errB != nil || a.Is4() != b.Is4() || a == b {
			return fmt.Errorf("--path %s: give an address at each end, of one family: 10.0.1.5=10.0.2.7", path)
		}
		p.Paths = append(p.Paths, [2]netip.Addr{a, b})
		p.Contenders = append(p.Contenders, remote.PathName([2]netip.Addr{a, b}))
	}
	if p.Tests, err = selectTests(f.tests, f.family); err != nil {
		return err
	}
	for _, t := range p.Tests {
		if t.Test == "mixed" {
			return errors.New("test mixed is the lab's alone: its far end names further addresses to send to")
		}
	}
	if err := p.Check(); err != nil {
		return err
	}
	if f.dry {
		return nil
	}
	if p.Identity, err = f.id.identity(); err != nil {
		return err
	}
	if f.out == "" && f.json == "" {
		f.out = time.Now().Format("weft-bench-20060102-150405")
	}
	return f.checkTargets()
}

func (f *benchFlags) run(cmd *cobra.Command, args []string) error {
	if err := f.complete(args); err != nil {
		f.unmake()
		return usageError{err}
	}
	if f.dry {
		d := f.dryRun()
		return show(cmd.OutOrStdout(), *f.format, d, func(w io.Writer) { d.print(w) })
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	progress := newProgress(cmd.ErrOrStderr())
	found, err := remote.Run(ctx, &f.plan, progress.event)
	progress.end()
	if err != nil {
		f.unmake()
	}
	if err := ended(ctx, err); err != nil {
		return err
	}
	found.Command = append([]string{"weft", "bench", "run"}, args...)
	found.Command = append(found.Command, reproduce(cmd.Flags())[3:]...)
	if err := f.write(cmd, found); err != nil {
		return err
	}
	return outcome(found)
}

// dryRun is what a run would send.
type dryRun struct {
	Hosts      []string  `json:"hosts"`
	Contenders []string  `json:"contenders"`
	Paths      int       `json:"paths"` // ordered pairs of hosts
	Samples    []planned `json:"samples"`
	Seconds    float64   `json:"seconds_about"`
}

type planned struct {
	Test    string  `json:"test"`
	Times   int     `json:"times"`
	Seconds float64 `json:"seconds_each"`
	Load    string  `json:"load"`
}

func (f *benchFlags) dryRun() dryRun {
	p := &f.plan
	d := dryRun{Contenders: p.Contenders}
	for _, h := range p.Hosts {
		name := h.At.String()
		if h.Name != "" {
			name = h.Name + " at " + name
		}
		d.Hosts = append(d.Hosts, name)
	}
	d.Paths = len(p.Hosts) * (len(p.Hosts) - 1)
	setups := (len(p.Contenders)-len(p.Paths))*d.Paths + 2*len(p.Paths)
	for _, t := range p.Tests {
		load := "as much as the path carries"
		if rate := t.Params["rate"]; rate > 0 {
			load = fmt.Sprintf("rate %g", rate)
		}
		if strings.HasSuffix(t.Test, "-rr") && t.Params["rate"] == 0 || t.Test == "tcp-crr" {
			load = "one packet at a time"
		}
		times := setups * (p.Warmup + p.Repeat)
		d.Samples = append(d.Samples, planned{t.String(), times, p.Duration.Seconds(), load})
		d.Seconds += float64(times)*(p.Duration.Seconds()+0.5) + float64(p.Warmup+p.Repeat)*min(p.Duration.Seconds(), 0.5)
	}
	return d
}

func (d dryRun) print(w io.Writer) {
	row(w, "hosts", strings.Join(d.Hosts, ", "))
	row(w, "contenders", strings.Join(d.Contenders, ", "))
	row(w, "ordered pairs of hosts", d.Paths)
	for _, s := range d.Samples {
		row(w, s.Test, fmt.Sprintf("%d × %g s, %s", s.Times, s.Seconds, s.Load))
	}
	row(w, "about", time.Duration(d.Seconds*float64(time.Second)).Round(time.Second).String())
	row(w, "nothing was sent")
}
