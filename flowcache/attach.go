package flowcache

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// device is one that our programs are on.
type device struct {
	name    string
	pod     bool
	links   []link.Link
	refused string // why they are not
}

func (d *device) close() error {
	var errs []error
	for _, l := range d.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// attach puts the programs on the pods' links and the underlay's devices that there are, and says why the cache cannot be on. It is for
// c.thread.
func (c *Cache) attach() (why string) {
	c.mu.Lock()
	p := c.forwarding
	c.mu.Unlock()
	if p == nil || len(p.Underlay) == 0 {
		return "there is no path yet"
	}
	links, err := c.rt.LinkList()
	if err != nil {
		return fmt.Sprintf("list links: %v", err)
	}
	leads, err := c.leads(p.Prefixes)
	if err != nil {
		return fmt.Sprintf("list routes: %v", err)
	}
	wanted := map[int]*device{}
	numbers := map[string]uint32{}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case slices.Contains(p.Underlay, a.Name):
			wanted[a.Index] = &device{name: a.Name}
			numbers[a.Name] = uint32(a.Index)
		case leads[a.Index] && l.Type() == "veth" && a.MasterIndex == 0 && a.NetNsID >= 0: // its other end is elsewhere
			wanted[a.Index] = &device{name: a.Name, pod: true}
		}
	}
	for index, d := range c.attached {
		if w := wanted[index]; w == nil || w.pod != d.pod || d.refused != "" {
			_ = d.close()
			delete(c.attached, index)
		}
	}
	for index, w := range wanted {
		have := c.attached[index]
		if have == nil {
			have = c.put(index, w)
			c.attached[index] = have
		} else if refused := c.foreign(index, have); refused != "" {
			have.refused = refused
		}
		if have.refused != "" && !have.pod {
			why = fmt.Sprintf("%s: %s", have.name, have.refused)
		}
	}
	for _, name := range p.Underlay {
		if _, ok := numbers[name]; !ok {
			why = fmt.Sprintf("there is no device %s", name)
		}
	}
	pods := map[int]string{}
	for index, d := range c.attached {
		if d.pod {
			pods[index] = d.refused
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if lost(c.podLinks, pods) {
		c.forget()
	}
	c.podLinks = pods
	if c.forwarding == p && !maps.Equal(p.dev, numbers) {
		again := *p
		again.dev = numbers
		c.forwarding = &again
		c.forget()
	}
	return why
}

// lost says whether a link that had the programs no longer has them.
func lost(before, now map[int]string) bool {
	for index, refused := range before {
		if again, ok := now[index]; refused == "" && (!ok || again != "") {
			return true
		}
	}
	return false
}

// leads are the links that routes to the node's own pods lead to, by number.
func (c *Cache) leads(own []netip.Prefix) (map[int]bool, error) {
	leads := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := c.rt.RouteList(nil, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // there is news then, and another look
			return nil, err
		}
		for _, r := range routes {
			if r.Dst != nil && slices.ContainsFunc(own, func(p netip.Prefix) bool { return holds(p, r.Dst) }) {
				leads[r.LinkIndex] = true
			}
		}
	}
	return leads, nil
}

func holds(p netip.Prefix, n *net.IPNet) bool {
	a, ok := netip.AddrFromSlice(n.IP)
	return ok && p.Contains(a.Unmap())
}

// put attaches the programs of a device.
func (c *Cache) put(index int, d *device) *device {
	if d.refused = c.foreign(index, d); d.refused != "" {
		return d
	}
	in, out := c.objects.WeftArrived, c.objects.WeftLeft
	if d.pod {
		in, out = c.objects.WeftFromPod, c.objects.WeftToPod
	}
	for _, p := range []struct {
		prog *ebpf.Program
		at   ebpf.AttachType
	}{{in, ebpf.AttachTCXIngress}, {out, ebpf.AttachTCXEgress}} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p.prog, Attach: p.at})
		if err != nil {
			_ = d.close()
			d.links, d.refused = nil, fmt.Sprintf("attach %v: %v", p.at, err)
			return d
		}
		d.links = append(d.links, l)
	}
	return d
}

// foreign says whether somebody else judges or queues at a place that cached flows pass by.
func (c *Cache) foreign(index int, d *device) string {
	qdiscs, err := c.rt.QdiscList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Sprintf("list its queueing disciplines: %v", err)
	}
	for _, q := range qdiscs {
		kind := q.Type()
		if kind == "clsact" || kind == "ingress" || d.pod && kind != "noqueue" {
			return fmt.Sprintf("it has a queueing discipline %s, which cached flows would pass by", kind)
		}
	}
	hooks := []ebpf.AttachType{ebpf.AttachTCXIngress}
	if d.pod {
		hooks = append(hooks, ebpf.AttachTCXEgress)
	}
	for _, at := range hooks {
		found, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
		if err != nil {
			return fmt.Sprintf("ask for its programs: %v", err)
		}
		for _, p := range found.Programs {
			if !c.own[p.ID] {
				return fmt.Sprintf("somebody else's program %q (id %d) is on it, which cached flows would pass by", programName(p.ID), p.ID)
			}
		}
	}
	return ""
}

// ids are the programs' numbers in the kernel.
func ids(list ...*ebpf.Program) (map[ebpf.ProgramID]bool, error) {
	own := map[ebpf.ProgramID]bool{}
	for _, p := range list {
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		if id, ok := info.ID(); ok {
			own[id] = true
		}
	}
	return own, nil
}

// programName is a program's name in the kernel, "" if it has none, is gone, or without CAP_SYS_ADMIN.
func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
