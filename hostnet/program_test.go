package hostnet

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

var (
	loadedMu sync.Mutex
	loaded   = map[string]*ebpf.Program{}
)

// program is a program that lets everything pass, one of each name for the whole test.
func program(name string) *ebpf.Program {
	loadedMu.Lock()
	defer loadedMu.Unlock()
	if loaded[name] == nil {
		loaded[name] = loadProgram(name)
	}
	return loaded[name]
}

func loadProgram(name string) *ebpf.Program {
	const next = -1 // TCX_NEXT
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()}})
	if err != nil {
		panic(fmt.Sprintf("load a BPF program: %v", err))
	}
	return p
}

// links calls visit, in the bench's namespace, with what the kernel says is at a device's hook.
func (b *bench) links(dev string, egress bool, visit func(link.AttachedProgram)) {
	b.t.Helper()
	hook := ebpf.AttachTCXIngress
	if egress {
		hook = ebpf.AttachTCXEgress
	}
	b.ns.Do(func() {
		d, err := net.InterfaceByName(dev)
		if err != nil {
			return // it is not there, so nothing is at it
		}
		r, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: hook})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, p := range r.Programs {
			visit(p)
		}
	})
}

// hooks says what is at devices' hooks, and what is pinned.
func (b *bench) hooks(devs ...string) (all []string) {
	b.t.Helper()
	for _, dev := range devs {
		for _, egress := range []bool{false, true} {
			b.links(dev, egress, func(a link.AttachedProgram) {
				p, err := ebpf.NewProgramFromID(a.ID)
				if err != nil {
					b.t.Fatal(err)
				}
				defer p.Close()
				info, err := p.Info()
				if err != nil {
					b.t.Fatal(err)
				}
				all = append(all, fmt.Sprintf("program %s dev %s %s", info.Name, dev, direction(egress)))
			})
		}
	}
	pins, err := filepath.Glob(b.bpffs + "/weft/*/*/*")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, p := range pins {
		all = append(all, "pin "+filepath.Base(p))
	}
	return all
}

// each calls do with each link at a hook.
func (b *bench) each(dev string, egress bool, do func(link.Link) error) {
	b.t.Helper()
	b.links(dev, egress, func(a link.AttachedProgram) {
		id, _ := a.LinkID()
		l, err := link.NewFromID(id)
		if err != nil {
			b.t.Fatal(err)
		}
		defer l.Close()
		if err := do(l); err != nil {
			b.t.Fatal(err)
		}
	})
}

func (b *bench) detach(dev string, egress bool) { b.each(dev, egress, link.Link.Detach) }

func (b *bench) replace(dev string, egress bool) {
	other := loadProgram("weft_other")
	defer other.Close()
	b.each(dev, egress, func(l link.Link) error { return l.Update(other) })
}

// unpin removes a pin, or with "" all that weft has in the bpffs.
func (b *bench) unpin(name string) {
	b.t.Helper()
	dirs, err := filepath.Glob(b.bpffs + "/weft/*")
	if err != nil || len(dirs) != 1 {
		b.t.Fatal(dirs, err)
	}
	if name == "" {
		err = os.RemoveAll(b.bpffs + "/weft")
	} else {
		err = os.Remove(filepath.Join(dirs[0], "links", name))
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) mustHook(when string, want ...string) {
	b.t.Helper()
	if got := b.hooks("eth0", "pod0.7"); !slices.Equal(got, want) {
		b.t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// TestProgramsOutliveTheDaemon: what is pinned goes on without a gap, what is not goes; a successor changes it in place, or takes it away.
func TestProgramsOutliveTheDaemon(t *testing.T) {
	nettest.RequireKernel(t, kernel.TCX)
	b := newBench(t)
	b.ip("link", "add", "pod0.7", "type", "veth", "peer", "name", "far0")
	want := func(code *ebpf.Program) Want {
		return Want{Programs: []Program{
			{Name: "weft_kept", Dev: "eth0", Code: code, Pinned: true}, {Name: "weft_loose", Dev: "eth0", Egress: true, Code: program("weft_loose")},
			{Name: "weft_kept", Dev: "pod0.7", Code: code, Pinned: true},
		}}
	}
	first := program("weft_kept")
	old, _ := b.open("test")
	if err := old.Apply("test", want(first)); err != nil {
		t.Fatal(err)
	}
	kept, loose, pod := "program weft_kept dev eth0 ingress", "program weft_loose dev eth0 egress", "program weft_kept dev pod0.7 ingress"
	pin, podPin := "pin weft_kept:ingress:eth0", "pin weft_kept:ingress:pod0:7"
	b.mustHook("at first", kept, loose, pod, pin, podPin)
	see := func() (ids []link.ID) {
		b.links("eth0", false, func(a link.AttachedProgram) { id, _ := a.LinkID(); ids = append(ids, id) })
		return ids
	}
	links := see()
	if err := old.rt.tcx.close(); err != nil { // as when the process dies
		t.Fatal(err)
	}
	b.mustHook("without a daemon", kept, pod, pin, podPin)

	next := loadProgram("weft_kept") // a restarted daemon loads its programs anew
	defer next.Close()
	host, _ := b.open("test", "other")
	if err := host.Apply("other", Want{}); err != nil {
		t.Fatal(err)
	}
	b.mustHook("before everybody has spoken", kept, pod, pin, podPin)
	if err := host.Apply("test", want(next)); err != nil {
		t.Fatal(err)
	}
	b.mustHook("with the next daemon", kept, loose, pod, pin, podPin)
	info, err := next.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	b.links("eth0", false, func(a link.AttachedProgram) {
		if a.ID != id {
			t.Errorf("program %d is in force, not the next daemon's %d", a.ID, id)
		}
	})
	if again := see(); !slices.Equal(again, links) {
		t.Errorf("links were %v and are %v: there was a moment without", links, again)
	}
	if n := host.Repairs(); n != 0 {
		t.Errorf("%d repairs", n)
	}

	// One device less, and then another one of its name.
	b.ip("link", "del", "pod0.7")
	if err := host.Apply("test", want(next)); err == nil || !strings.Contains(err.Error(), "pod0.7 does not exist") {
		t.Errorf("without its device: %v", err)
	}
	b.mustHook("without pod0.7", kept, loose, pin)
	b.ip("link", "add", "pod0.7", "type", "veth", "peer", "name", "far0")
	if err := host.Apply("test", want(next)); err != nil {
		t.Error(err)
	}
	b.mustHook("with another pod0.7", kept, loose, pod, pin, podPin)

	// What is no longer to be pinned is not; what is not wanted goes.
	w := want(next)
	w.Programs = w.Programs[:1]
	w.Programs[0].Pinned = false
	if err := host.Apply("test", w); err != nil {
		t.Error(err)
	}
	b.mustHook("one, and that unpinned", kept)
	if err := host.Apply("test", Want{}); err != nil {
		t.Error(err)
	}
	b.mustHook("with nothing wanted")
}

// TestProgramsChangeAlone: a change of programs alone, while a Host listens, does without a look at everything; so do those of a pod that
// comes and goes.
func TestProgramsChangeAlone(t *testing.T) {
	nettest.RequireKernel(t, kernel.TCX)
	b := newBench(t)
	b.guarded(sample())
	nettest.Eventually(t, waitLong, func() error {
		if !b.host.listening.Load() || b.host.doubt.Load() {
			return fmt.Errorf("it does not listen yet")
		}
		return nil
	})
	w := sample()
	w.Links = append(w.Links, Link{Name: Bridge, Bridge: true, MTU: 1450, Quiet: true})
	w.Programs = []Program{{Name: "weft_out", Dev: Bridge, Egress: true, Code: program("weft_out")}}
	b.apply(w)
	if got := b.hooks(Bridge); len(got) != 1 {
		t.Errorf("%q", got)
	}
	other := loadProgram("weft_out")
	defer other.Close()
	w.Programs = []Program{{Name: "weft_out", Dev: Bridge, Egress: true, Code: other}}
	b.apply(w)
	if got := b.hooks(Bridge); len(got) != 1 {
		t.Errorf("with another program in its place: %q", got)
	}
	b.apply(sample())
	if got := b.hooks(Bridge); len(got) != 0 {
		t.Errorf("without: %q", got)
	}
	if b.host.Repairs() != 0 {
		t.Errorf("%d repairs", b.host.Repairs())
	}
}

// TestProgramRefused: names that are not ours, and programs that have others.
func TestProgramRefused(t *testing.T) {
	nettest.RequireKernel(t, kernel.TCX)
	b := newBench(t)
	for _, c := range []struct {
		p    Program
		says string
	}{
		{Program{Name: "other", Dev: "eth0", Code: program("weft_in")}, "not ours"},
		{Program{Name: "weft_a.b", Dev: "eth0", Code: program("weft_in")}, "not ours"},
		{Program{Name: "weft_in", Dev: "eth0"}, "not loaded"},
		{Program{Name: "weft_other", Dev: "eth0", Code: program("weft_in")}, `knows it as "weft_in"`},
	} {
		if err := b.host.Apply("test", Want{Programs: []Program{c.p}}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.p, err, c.says)
		}
	}
	b.mustHook("after all")
}

// TestPins: the directory is one namespace's, what a dead one of the same inode number left goes, and the file system that weft mounted too.
func TestPins(t *testing.T) {
	nettest.RequireKernel(t, kernel.TCX)
	b := newBench(t)
	dir, err := b.host.Pins()
	if err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(filepath.Dir(dir), fmt.Sprintf("%d-%d", b.host.pins.inode, b.host.pins.cookie+1))
	other := filepath.Join(filepath.Dir(dir), fmt.Sprintf("%d-%d", b.host.pins.inode+1, b.host.pins.cookie))
	for _, d := range []string{stale, other} {
		if err := os.MkdirAll(filepath.Join(d, "links"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	again, err := b.host.Pins()
	if err != nil || again != dir || exists(stale) || !exists(other) {
		t.Errorf("%s, then %s, %v; stale there %v, another namespace's %v", dir, again, err, exists(stale), exists(other))
	}
	if removed, err := b.host.Cleanup(); err != nil || exists(dir) || !exists(other) {
		t.Errorf("%q, %v", removed, err)
	}
	if err := os.RemoveAll(other); err != nil {
		t.Fatal(err)
	}
	removed, err := b.host.Cleanup()
	if mounted, _ := isBPFFS(b.bpffs); err != nil || mounted || !slices.Contains(removed, "mount "+b.bpffs) {
		t.Errorf("%q, %v; mounted %v", removed, err, mounted)
	}
	b.host.bpffs = filepath.Join(b.bpffs, "nowhere")
	if _, err := b.host.Pins(); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("without a place to mount at: %v", err)
	}
}
