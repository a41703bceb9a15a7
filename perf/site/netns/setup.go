package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"weft/perf/contender"
	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/site"
	"weft/perf/testbed"
)

const (
	// settle bounds how long a contender may take to carry packets.
	settle = 15 * time.Second
	// slack is what a generator may take beyond the duration it was given.
	slack = 20 * time.Second
)

// setup implements site.Setup: one contender in its own testbed, with a generator's server in the far pod.
type setup struct {
	contender.Contender
	overlay contender.Overlay
	bed     *testbed.Bed
	plan    *Plan
	server  *testbed.Process
	log     string // of the generators
	dead    error  // why it takes no more samples
}

// openSetup brings a contender up until its pods reach each other. On an error nothing is left.
func openSetup(ctx context.Context, p *Plan, c contender.Contender, label, dir string) (_ *setup, err error) {
	if err := c.Needs(); err != nil {
		return nil, &contender.UnsupportedError{Reason: err.Error()}
	}
	if err := c.Fits(p.MTU); err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, label)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	s := &setup{Contender: c, plan: p, log: filepath.Join(dir, "bench.log")}
	s.bed, err = testbed.Open(testbed.Config{
		Label: label, Nodes: p.Nodes, MTU: p.MTU, Layout: p.Layout, Dir: dir,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if v := recover(); v != nil {
			s.close()
			panic(v)
		}
		if err != nil {
			s.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	s.overlay, err = c.Up(ctx, contender.Env{Bed: s.bed, Weft: p.Weft, Queues: p.Queues, Fault: p.Fault})
	if err != nil {
		return nil, err
	}
	for _, t := range p.Tests {
		if t.Params["family"] == 6 && len(s.bed.Network) == 1 {
			return nil, &contender.UnsupportedError{Reason: fmt.Sprintf("it carries no IPv6, and test %s is over it", t)}
		}
	}
	if err := s.bed.AttachPods(s.overlay.InnerMTU()); err != nil {
		return nil, err
	}
	if err := s.bed.Reach(ctx, s.overlay.InnerMTU()); err != nil {
		return nil, s.explain(err)
	}
	return s, s.serve(ctx)
}

// serve starts the generator's server in the far pod and waits until it listens.
func (s *setup) serve(ctx context.Context) (err error) {
	_, far := s.ends()
	s.server, err = s.startServer(ctx, far.Pod)
	return err
}

// startServer starts a generator's server in a namespace.
func (s *setup) startServer(ctx context.Context, ns *testbed.Namespace) (*testbed.Process, error) {
	return ns.StartReady(ctx, site.Generator, s.log,
		s.plan.Weft, "lab", "generator", "serve", "--listen", netip.AddrPortFrom(anyAddr(), probe.DefaultPort).String())
}

// anyAddr is where a server listens to be reached over all families.
func anyAddr() netip.Addr {
	if !testbed.HasIPv6() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func (s *setup) close() error {
	var err error
	if d, ok := s.overlay.(contender.Downer); ok {
		err = d.Down()
	}
	return errors.Join(err, s.bed.Close())
}

// ends are the nodes whose pods the generators are in: traffic is sent from the first.
func (s *setup) ends() (near, far *testbed.Node) { return s.bed.Nodes[0], s.bed.Nodes[1] }

// explain prefers the death of a process, which explains everything, over err, its consequence.
func (s *setup) explain(err error) error {
	processes := s.overlay.Processes()
	if s.server != nil {
		processes = append(processes[:len(processes):len(processes)], s.server)
	}
	for _, p := range processes {
		if ended := p.Ended(); ended != nil {
			s.dead = ended
			return ended
		}
	}
	return err
}

// About implements site.Setup.
func (s *setup) About() site.About {
	return site.About{Contender: s.Name, InnerMTU: s.overlay.InnerMTU(), Super: s.Super}
}

// Dead implements site.Setup.
func (s *setup) Dead() error { return s.dead }

// Up implements site.Setup: each contender has nodes of its own, and is up beside the others.
func (s *setup) Up(context.Context) (fresh bool, err error) { return false, nil }

// Down implements site.Setup.
func (s *setup) Down(context.Context) error { return nil }

// Busy implements site.Setup: this machine is both ends.
func (s *setup) Busy(context.Context) (machine.Busy, error) {
	r, err := machine.Read()
	return machine.Busy{r}, err
}

// Times implements site.Setup.
func (s *setup) Times(context.Context) (map[string]machine.CPUTime, error) {
	times := map[string]machine.CPUTime{}
	for _, p := range append(slices.Clone(s.overlay.Processes()), s.server) {
		used, err := p.CPU()
		if err != nil {
			return nil, s.explain(err)
		}
		times[p.Name] = times[p.Name].Plus(used)
	}
	return times, nil
}

// Generate implements site.Setup: from the near pod to the far one.
func (s *setup) Generate(ctx context.Context, t probe.Selection, d time.Duration) (probe.Result, machine.CPUTime, error) {
	near, far := s.ends()
	target := netip.AddrPortFrom(far.PodAddr(int(t.Params["family"])), probe.DefaultPort)
	return s.generate(ctx, near.Pod, target, t, d)
}

// generate runs one test from a namespace and returns what it found, and the processor time of
// the generator that has ended by now.
func (s *setup) generate(ctx context.Context, from *testbed.Namespace, target netip.AddrPort, t probe.Selection, duration time.Duration) (probe.Result, machine.CPUTime, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+slack)
	defer cancel()
	var out bytes.Buffer
	p, err := from.Start(site.Generator, s.log, &out, s.plan.Weft, "lab", "generator", "run", "--to", target.String(),
		"--test", spell(t), "--duration", duration.String(), "--congestion", s.plan.Congestion, "-o", "json")
	if err != nil {
		return probe.Result{}, machine.CPUTime{}, err
	}
	if err := p.Wait(ctx); err != nil && !foundCorrupt(err) {
		return probe.Result{}, machine.CPUTime{}, s.explain(err)
	}
	used, err := p.CPU()
	if err != nil {
		return probe.Result{}, machine.CPUTime{}, err
	}
	var r probe.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return r, used, fmt.Errorf("lab: the generator's result: %w", err)
	}
	return r, used, nil
}

// foundCorrupt says whether a generator ended as it does where its result is complete, but bytes arrived other than they were sent.
func foundCorrupt(err error) bool {
	var exit *testbed.ExitError
	return errors.As(err, &exit) && exit.Code == probe.ExitCorrupt
}

// spell writes a selection with every parameter, defaults included: test:key=value:key=value.
func spell(t probe.Selection) string {
	text := t.Test
	for _, key := range slices.Sorted(maps.Keys(t.Params)) {
		text += ":" + key + "=" + strconv.FormatFloat(t.Params[key], 'f', -1, 64)
	}
	return text
}
