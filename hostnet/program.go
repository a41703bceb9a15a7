package hostnet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ProgramPrefix starts the names of all BPF programs and maps that weft loads.
const ProgramPrefix = LinkPrefix + "_"

// Program is a BPF program at a device's tcx hook (since Linux 6.6), behind those of others there: where one of theirs returns anything
// but TCX_NEXT, this one does not see the packet. When the device goes, the program goes with it, and comes back with one of the name.
type Program struct {
	Name   string // starts with ProgramPrefix, at most 15 letters, digits and "_"; tells apart what is at one hook
	Dev    string
	Egress bool // of packets that leave by the device; else of those that come in by it

	// Code is a loaded program of type SchedCLS, for as long as it is wanted, and its owner's to close. Another one in a later Want takes this
	// one's place in one step.
	Code *ebpf.Program

	// Pinned has the program stay when the process ends, in whatever way: the next Host of the namespace adopts it, and puts the Code that is
	// wanted then in its place, or takes it away. It takes a bpffs, see Pins.
	Pinned bool
}

// programKey is a place at a hook.
type programKey struct {
	name, dev string
	egress    bool
}

func (p Program) key() programKey { return programKey{p.Name, p.Dev, p.Egress} }
func (p Program) device() string  { return p.Dev }
func (p Program) shared() bool    { return false }

func (p Program) String() string {
	return fmt.Sprintf("program %s dev %s %s", p.Name, p.Dev, direction(p.Egress))
}

func (p Program) add(rt *handle, index int, _ bool) error { return rt.tcx.put(p, index) }
func (p Program) remove(rt *handle, index int) error      { return rt.tcx.remove(p, index) }
func (p Program) evict(rt *handle, index int) error       { return p.remove(rt, index) }

func direction(egress bool) string {
	if egress {
		return "egress"
	}
	return "ingress"
}

func (p Program) check() error {
	odd := func(r rune) bool { return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') }
	switch {
	case !strings.HasPrefix(p.Name, ProgramPrefix) || len(p.Name) > 15 || strings.ContainsFunc(p.Name, odd):
		return fmt.Errorf("not ours: a name is %s and up to 10 letters, digits and _", ProgramPrefix)
	case p.Code == nil:
		return errors.New("it is not loaded")
	}
	return nil
}

// tcx are the programs at hooks that are ours: those whose links this process holds, and those that are pinned in its directory. The kernel
// lists links only to who has CAP_SYS_ADMIN.
type tcx struct {
	within func(func() error) error   // runs it in the namespace
	pins   func(bool) (string, error) // the directory for pins, made on demand; "" = there is none
	held   []*attached
}

// attached is a program at a hook.
type attached struct {
	link   link.Link
	name   string
	index  int // of the device, for as long as it lives
	egress bool
	pin    string // file; "" = none

	code *ebpf.Program // nil = an earlier process put it there
	id   ebpf.ProgramID
}

// live says whether it is still at its hook, and which program is.
func (a *attached) live() (id ebpf.ProgramID, ok bool) {
	info, err := a.link.Info()
	if err != nil || info.TCX() == nil || int(info.TCX().Ifindex) != a.index {
		return 0, false
	}
	return info.Program, true
}

// broken says whether a program is no longer as it was put. Nothing tells when somebody detaches or replaces one, or removes a pin.
func (t *tcx) broken() bool {
	return slices.ContainsFunc(t.held, func(a *attached) bool {
		id, ok := a.live()
		return !ok || id != a.id || a.pin != "" && !exists(a.pin)
	})
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// list returns what is at hooks, with the names of their devices, and adopts what is pinned.
func (t *tcx) list(names map[int]string) (list []Program, err error) {
	if err := t.adopt(); err != nil {
		return nil, err
	}
	for _, a := range slices.Clone(t.held) {
		id, ok := a.live()
		if !ok { // with its device, or by another hand
			err = errors.Join(err, t.drop(a))
			continue
		}
		if a.pin != "" && !exists(a.pin) {
			err = errors.Join(err, a.unpin())
		}
		p := Program{Name: a.name, Dev: names[a.index], Egress: a.egress, Pinned: a.pin != ""}
		if id == a.id {
			p.Code = a.code
		}
		list = append(list, p)
	}
	return list, err
}

// adopt takes over what is pinned.
func (t *tcx) adopt() error {
	dir, err := t.pins(false)
	if err != nil || dir == "" {
		return err
	}
	dir = filepath.Join(dir, "links")
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) { // whoever may not look there has pinned nothing
		return fmt.Errorf("list pinned programs: %w", err)
	}
	for _, f := range files {
		file := filepath.Join(dir, f.Name())
		if slices.ContainsFunc(t.held, func(a *attached) bool { return a.pin == file }) {
			continue
		}
		a, err := adopt(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil { // of a device that is gone, or nothing that we know
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove a pinned program: %w", err)
			}
			continue
		}
		t.held = append(t.held, a)
	}
	return nil
}

func adopt(file string) (*attached, error) {
	l, err := link.LoadPinnedLink(file, nil)
	if err != nil {
		return nil, err
	}
	name, _, _ := strings.Cut(filepath.Base(file), ":")
	info, err := l.Info()
	if err != nil || info.TCX() == nil || info.TCX().Ifindex == 0 {
		return nil, errors.Join(fmt.Errorf("%s is at no hook", file), err, l.Close())
	}
	x := info.TCX()
	return &attached{link: l, name: name, index: int(x.Ifindex), egress: ebpf.AttachType(x.AttachType) == ebpf.AttachTCXEgress,
		pin: file, id: info.Program}, nil
}

func (t *tcx) find(p Program, index int) *attached {
	at := slices.IndexFunc(t.held, func(a *attached) bool { return a.name == p.Name && a.egress == p.Egress && a.index == index })
	if at < 0 {
		return nil
	}
	return t.held[at]
}

// put attaches a program, or puts it in the place of the one that is there, which goes in the same step.
func (t *tcx) put(p Program, index int) error {
	if err := p.check(); err != nil {
		return err
	}
	if index == 0 {
		return unix.ENODEV
	}
	info, err := p.Code.Info()
	if err != nil {
		return err
	}
	if info.Name != p.Name {
		return fmt.Errorf("the kernel knows it as %q", info.Name)
	}
	id, _ := info.ID()
	a := t.find(p, index)
	if a != nil {
		err := a.link.Update(p.Code)
		if errors.Is(err, unix.ENOLINK) { // it is no longer at the hook
			err, a = t.drop(a), nil
		}
		if err != nil {
			return err
		}
	}
	if a == nil {
		a = &attached{name: p.Name, index: index, egress: p.Egress}
		hook := ebpf.AttachTCXIngress
		if p.Egress {
			hook = ebpf.AttachTCXEgress
		}
		err := t.within(func() (err error) {
			a.link, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p.Code, Attach: hook})
			return err
		})
		if err != nil {
			return err
		}
		t.held = append(t.held, a)
	}
	a.code, a.id = p.Code, id
	switch {
	case p.Pinned && a.pin == "":
		return t.pin(a, p)
	case !p.Pinned && a.pin != "":
		return a.unpin()
	}
	return nil
}

// pin has a program outlive the process. A file's name holds no dot in a bpffs, and a device's no colon.
func (t *tcx) pin(a *attached, p Program) error {
	dir, err := t.pins(true)
	if err != nil {
		return err
	}
	dir = filepath.Join(dir, "links")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for pinned programs: %w", err)
	}
	file := filepath.Join(dir, strings.Join([]string{p.Name, direction(p.Egress), strings.ReplaceAll(p.Dev, ".", ":")}, ":"))
	if err := a.link.Pin(file); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	a.pin = file
	return nil
}

func (a *attached) unpin() error {
	a.pin = ""
	return a.link.Unpin()
}

func (t *tcx) remove(p Program, index int) error {
	if a := t.find(p, index); a != nil {
		return t.drop(a)
	}
	return nil
}

// drop takes a program from its hook, if it is there. Another process may hold the link too, so that to close it would not do.
func (t *tcx) drop(a *attached) error {
	t.held = slices.DeleteFunc(t.held, func(b *attached) bool { return a == b })
	return errors.Join(a.unpin(), a.link.Detach(), a.link.Close())
}

// close lets go of the links: what is pinned stays.
func (t *tcx) close() error {
	var errs []error
	for _, a := range t.held {
		errs = append(errs, a.link.Close())
	}
	t.held = nil
	return errors.Join(errs...)
}

func (p *pass) programs() ([]Program, error) {
	list, err := p.h.rt.tcx.list(p.names)
	if err != nil {
		return nil, fmt.Errorf("list programs: %w", err)
	}
	return list, nil
}

// removePrograms is Cleanup's: all that is pinned in the namespace's directory, which goes too.
func (h *Host) removePrograms(names map[int]string) (removed []string, err error) {
	list, err := h.rt.tcx.list(names)
	for _, p := range list {
		removed = append(removed, p.String())
	}
	for _, a := range slices.Clone(h.rt.tcx.held) {
		err = errors.Join(err, h.rt.tcx.drop(a))
	}
	if err != nil {
		err = fmt.Errorf("hostnet: remove programs: %w", err)
	}
	pins, pinsErr := h.removePins()
	return append(removed, pins...), errors.Join(err, pinsErr)
}
