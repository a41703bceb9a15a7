package main

import (
	"context"
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

	"weft/perf/agent"
	"weft/perf/contender"
	"weft/perf/result"
	"weft/perf/site/remote"
)

// benchFlags is what `weft bench run` can be told.
type benchFlags struct {
	resultFlags
	contenders, tests string
	family            int
	paths, pods       []string
	dry               bool
	id                identityFlags
	plan              remote.Plan
	watch             watchFlags
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

Results go to the folder --out: report.html (to look at), result.json, result.csv and table.txt. Without --out, --json
and -o json that is a new folder weft-bench-<date>-<time> here. 'weft lab compare' says what changed since yesterday's.

With --every it measures again and again until interrupted: the folder, weft-bench unless told otherwise, always has the newest run,
history.jsonl what came before, and the page both; --metrics tells Prometheus. --max-rate, --max-packets and --max-share bound what that
costs hosts and network.`,
		Example: `  weft bench run 192.0.2.1 192.0.2.2 --secret bench.secret
  weft bench run a=192.0.2.1 b=192.0.2.2 --secret bench.secret --contenders bare,tun,tun+auto --tests tcp-stream,tcp-rr
  weft bench run 192.0.2.1 192.0.2.2 --secret bench.secret --path 10.0.1.5=10.0.2.7
  weft bench run 192.0.2.1 192.0.2.2 --secret bench.secret --every 15m --max-rate 1e8 --max-share 0.02`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.contenders, "contenders", "bare", "what to measure besides others' paths: bare, and modes of weft with a tunnel; none = only paths")
	flags.StringVar(&f.tests, "tests", "tcp-stream,tcp-rr,udp-rate:size=64", "what to measure, see 'weft lab tests'")
	flags.StringArrayVar(&f.paths, "path", nil, "A=B: measure a path that somebody else made, both ways, between an address A of one host and B of another; may be given again")
	flags.StringArrayVar(&f.pods, "pod", nil, "NAME=ADDR[:PORT]: an agent in a pod on the host of that name; contender pods is the network between those that are given")
	flags.DurationVar(&f.plan.Duration, "duration", 3*time.Second, "of one sample, a search for the highest rate included")
	flags.IntVar(&f.plan.Repeat, "repeat", 5, "measured rounds")
	flags.IntVar(&f.plan.Warmup, "warmup", 1, "rounds before them, dropped")
	flags.IntVar(&f.family, "family", 0, "IP version of tests that do not say their own, 4 or 6; 0 = that of the first host's address")
	flags.StringVar(&f.plan.Congestion, "congestion", "cubic", "TCP congestion control; host = what each host uses for its own, all that agents without rights may on some hosts")
	flags.BoolVar(&f.dry, "dry-run", false, "say what would be sent, by whom to whom, and for how long; connect to nobody")
	flags.StringVar(&f.json, "json", "", "write the result to this file")
	flags.StringVar(&f.out, "out", "", "write report.html, result.json, result.csv and table.txt to this folder")
	flags.Float64Var(&f.plan.Limit.Bits, "max-rate", 0, "have every host send at most so many bit/s of payload (0 = no limit but the agents')")
	flags.Float64Var(&f.plan.Limit.Packets, "max-packets", 0, "have every host send at most so many packet/s (0 = no limit but the agents')")
	f.watch.add(flags)
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
	for _, pod := range f.pods {
		name, text, named := strings.Cut(pod, "=")
		at, err := parseBenchAddr(text)
		if !named || err != nil || !slices.ContainsFunc(p.Hosts, func(h remote.Host) bool { return h.Name == name }) {
			return fmt.Errorf("--pod %s: give a host that is named (NAME=ADDR) and the address of a pod on it: %s=10.0.1.5", pod, name)
		}
		p.Pods = append(p.Pods, remote.Host{Name: name, At: at})
	}
	switch len(p.Pods) {
	case 0:
	case 1:
		return errors.New("--pod: one pod has nobody to speak with: give another, on another host")
	default:
		p.Contenders = append(p.Contenders, remote.Pods)
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
	if p.Limit.Bits < 0 || p.Limit.Packets < 0 {
		return errors.New("a limit must not be negative; 0 is none")
	}
	if err := f.watch.check(); err != nil {
		return err
	}
	if f.dry {
		return nil
	}
	if p.Identity, err = f.id.identity(); err != nil {
		return err
	}
	switch {
	case f.out == "" && f.watch.every > 0:
		f.out = "weft-bench"
	case f.out == "" && f.json == "" && *f.format != asJSON:
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
	if f.watch.every > 0 {
		return f.continuously(ctx, cmd, args)
	}
	found, err := f.once(ctx, cmd, args)
	if err != nil {
		f.unmake()
	}
	if err := ended(ctx, err); err != nil {
		return err
	}
	if err := f.write(cmd, found); err != nil {
		return err
	}
	return outcome(found)
}

// once carries the plan out.
func (f *benchFlags) once(ctx context.Context, cmd *cobra.Command, args []string) (*result.Result, error) {
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	found, err := remote.Run(ctx, &f.plan, progress.event)
	if err != nil {
		return nil, err
	}
	found.Command = append([]string{"weft", "bench", "run"}, args...)
	found.Command = append(found.Command, reproduce(cmd.Flags())[3:]...)
	return found, nil
}

// dryRun is what a run would send.
type dryRun struct {
	Hosts      []string  `json:"hosts"`
	Contenders []string  `json:"contenders"`
	Paths      int       `json:"paths"` // ordered pairs of hosts
	Samples    []planned `json:"samples"`
	Seconds    float64   `json:"seconds_about"`
	Every      float64   `json:"seconds_every,omitempty"` // from a run to the next; absent = there is one
	MaxRate    float64   `json:"max_rate,omitempty"`      // bit/s of payload that a host sends
	MaxPackets float64   `json:"max_packets,omitempty"`   // packet/s
}

type planned struct {
	Test    string  `json:"test"`
	Times   int     `json:"times"`
	Seconds float64 `json:"seconds_each"`
	Load    string  `json:"load"`
}

func (f *benchFlags) dryRun() dryRun {
	p := &f.plan
	d := dryRun{Contenders: p.Contenders, Every: f.watch.every.Seconds(), MaxRate: p.Limit.Bits, MaxPackets: p.Limit.Packets}
	for _, h := range p.Hosts {
		name := h.At.String()
		if h.Name != "" {
			name = h.Name + " at " + name
		}
		d.Hosts = append(d.Hosts, name)
	}
	d.Paths = len(p.Hosts) * (len(p.Hosts) - 1)
	setups := (len(p.Contenders)-len(p.Paths))*d.Paths + 2*len(p.Paths)
	if n := len(p.Pods); n > 0 {
		setups += n*(n-1) - d.Paths
	}
	apart := 0
	for _, c := range p.Contenders {
		if agent.AtDevice(c) {
			apart++
		}
	}
	for _, t := range p.Tests {
		load := "as much as the path carries"
		if rate := t.Params["rate"]; rate > 0 {
			load = fmt.Sprintf("rate %g", rate)
		}
		if t.Test == "tcp-rr" || t.Test == "udp-rr" || t.Test == "tcp-crr" {
			load = "one packet at a time"
		}
		times := setups * (p.Warmup + p.Repeat)
		d.Samples = append(d.Samples, planned{t.String(), times, p.Duration.Seconds(), load})
		// What is up for its own samples only carries the test before each, for a second at most.
		d.Seconds += float64(apart*d.Paths*(p.Warmup+p.Repeat)) * (min(p.Duration.Seconds(), 1) + 3)
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
	if d.MaxRate > 0 {
		row(w, "a host sends at most", fmt.Sprintf("%g bit/s", d.MaxRate))
	}
	if d.MaxPackets > 0 {
		row(w, "a host sends at most", fmt.Sprintf("%g packet/s", d.MaxPackets))
	}
	if d.Every > 0 {
		row(w, "again every", time.Duration(d.Every*float64(time.Second)).String())
	}
	row(w, "nothing was sent")
}
