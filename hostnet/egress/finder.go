package egress

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/control"
	"weft/hostnet"
)

const (
	// lookAgain is how long a route is believed. Sockets follow routes by themselves; what is derived here follows soon enough.
	lookAgain = time.Second / 2
	// share bounds what that costs: to ask for all routes takes at most 1/share of the time.
	share = 100
)

// Finder derives, and remembers routes for a while. It is for one goroutine at a time.
type Finder struct {
	kernel Kernel
	choice Choice
	now    func() time.Time
	ear    *ICMPListener         // nil = nobody listens
	sized  *Measured             // nil = nobody measures
	learnt map[netip.Addr]learnt // what the kernel has learnt of paths

	local    []held
	paths    map[netip.Addr]Path    // from local, by the peer's endpoint; zero = there is no route
	devices  map[int]hostnet.Device // that paths are over, by number
	until    time.Time              // both are believed
	revision uint64
}

// held is an address of ours and the device that has it.
type held struct {
	addr netip.Addr
	on   hostnet.Device
}

// learnt is a path's MTU, bytes, and since when the kernel has it.
type learnt struct {
	mtu   int
	since time.Time
}

// NewFinder returns a Finder that knows nothing yet.
func NewFinder(k Kernel, c Choice) *Finder {
	return &Finder{kernel: k, choice: c, now: time.Now, learnt: map[netip.Addr]learnt{}}
}

// Hear makes the Finder take in what an ICMPListener hears.
func (f *Finder) Hear(e *ICMPListener) { f.ear = e }

// Measure makes the Finder take in what is found out by packets of full size.
func (f *Finder) Measure(m *Measured) { f.sized = m }

// Derive says how self reaches its peers now. An error is what keeps it from sending at all; a peer without a route is none.
func (f *Finder) Derive(self control.Node, peers []control.Node) (*Underlay, error) {
	wanted, local, err := f.own(self)
	if err != nil {
		return nil, err
	}
	u := &Underlay{}
	for _, l := range local {
		u.Local = append(u.Local, l.addr)
	}
	self = u.Self(self)
	f.follow(self, peers, local)
	device, why, err := f.choose(self, wanted, peers)
	if err != nil {
		return nil, err
	}
	u.Device, u.Why, u.MTU = device.Name, why, device.MTU
	if f.choice.MTU != 0 {
		u.MTU = f.choice.MTU
	}
	u.Devices = []string{device.Name}
	for _, l := range local {
		u.Devices = append(u.Devices, l.on.Name)
	}
	for _, index := range slices.Sorted(maps.Keys(f.devices)) {
		u.Devices = append(u.Devices, f.devices[index].Name)
	}
	u.Devices = unique(u.Devices)
	u.Paths, u.Revision = f.paths, f.revision
	return u, nil
}

func unique(list []string) (kept []string) {
	for _, s := range list {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// own returns the device that is asked for, if any is, and which of the node's endpoints are used.
func (f *Finder) own(self control.Node) (wanted hostnet.Device, local []held, err error) {
	if f.choice.Interface != "" {
		if wanted, err = f.kernel.Device(f.choice.Interface); err != nil {
			return wanted, nil, err
		}
	}
	if len(self.Endpoints) == 0 {
		return wanted, nil, fmt.Errorf("egress: node %q has no endpoint: give it one in the control plane", self.Name)
	}
	on, err := f.kernel.Holders()
	if err != nil {
		return wanted, nil, err
	}
	var elsewhere []string
	for _, a := range self.Endpoints {
		if slices.ContainsFunc(local, func(l held) bool { return l.addr.Is4() == a.Is4() }) {
			continue
		}
		device, found, err := f.holder(on[a], wanted)
		switch {
		case err != nil:
			return wanted, nil, err
		case !found && f.choice.Interface == "":
			return wanted, nil, fmt.Errorf("egress: no device has the address %s: set node.interface, or this node's endpoints to addresses it has", a)
		case !found:
			elsewhere = append(elsewhere, a.String())
		default:
			local = append(local, held{a, device})
		}
	}
	if len(local) == 0 {
		return wanted, nil, fmt.Errorf("egress: %s has none of this node's endpoints (%s): give the node an endpoint that it has, or correct node.interface",
			wanted.Name, strings.Join(elsewhere, ", "))
	}
	return wanted, local, nil
}

// holder chooses among the devices that have an address: the wanted one or one by which nothing leaves; where none is
// wanted, any.
func (f *Finder) holder(indexes []int, wanted hostnet.Device) (best hostnet.Device, found bool, err error) {
	for _, index := range indexes {
		if index == wanted.Index {
			return wanted, true, nil
		}
		d, err := f.kernel.DeviceAt(index)
		if err != nil {
			return d, false, err
		}
		if d.Inert || f.choice.Interface == "" {
			if !found || best.Inert {
				best, found = d, true
			}
		}
	}
	return best, found, nil
}

// follow brings the paths to the peers up to date: of those not asked for yet, or where anything has changed, or has not been
// looked at for a while, of all.
func (f *Finder) follow(self control.Node, peers []control.Node, local []held) {
	start, before := f.now(), f.paths
	news := f.news() // takes it
	whole := f.paths == nil || start.After(f.until) || news || !slices.Equal(f.local, local) || f.stirred()
	if whole { // forgets the peers that left, too
		f.local, f.paths, f.devices = local, make(map[netip.Addr]Path, len(peers)), map[int]hostnet.Device{}
	}
	another := whole
	for i := range peers {
		to, ok := control.Endpoint(self, peers[i])
		if !ok {
			continue
		}
		if _, known := f.paths[to]; !known {
			f.paths[to] = f.path(to)
			another = true
		}
	}
	if another && f.sized != nil {
		f.sized.keep(maps.Clone(f.paths))
	}
	if !whole {
		return
	}
	maps.DeleteFunc(f.learnt, func(to netip.Addr, _ learnt) bool { _, still := f.paths[to]; return !still })
	wait := max(lookAgain, share*f.now().Sub(start))
	f.until = start.Add(wait)
	if f.ear != nil {
		f.ear.keep(f.paths, wait)
	}
	for to, p := range f.paths {
		if was, known := before[to]; known && was != p {
			f.revision++
			return
		}
	}
}

// news says whether the ICMPListener has heard something, or something was found out.
func (f *Finder) news() bool {
	found := f.sized.take()
	if f.ear == nil {
		return found
	}
	select {
	case <-f.ear.told:
		return true
	default:
		return found
	}
}

// stirred says whether a device that peers are reached by is not as it was.
func (f *Finder) stirred() bool {
	for index, was := range f.devices {
		if is, err := f.kernel.DeviceAt(index); err != nil || is != was {
			return true
		}
	}
	return false
}

// path asks for the path to a peer's endpoint. The zero Path is none.
func (f *Finder) path(to netip.Addr) (p Path) {
	i := slices.IndexFunc(f.local, func(l held) bool { return l.addr.Is4() == to.Is4() })
	source := f.local[i].addr // control.Endpoint has chosen a family of ours
	exits, err := f.kernel.Exits(to, source)
	if err != nil {
		return p
	}
	for _, e := range exits {
		d, known := f.devices[e.Index]
		if !known {
			if d, err = f.kernel.DeviceAt(e.Index); err != nil {
				continue // it has just gone
			}
			f.devices[e.Index] = d
		}
		mtu := d.MTU
		if e.MTU != 0 {
			mtu = min(mtu, e.MTU)
		}
		if p.Device == "" {
			p = Path{Source: source, Device: d.Name, Via: e.Via, MTU: mtu}
		}
		p.MTU = min(p.MTU, mtu)
	}
	if p.Device == "" {
		return p
	}
	now := f.now()
	carries, whole := f.sized.of(to, p, now)
	if f.ear != nil {
		f.ear.refute(to, whole)
		f.ear.limit(to, &p, now)
	}
	// The kernel does not say since when it believes a router, who may not be one.
	if mtu := f.kernel.PathMTU(to, source); mtu == 0 || mtu >= p.MTU {
		delete(f.learnt, to)
	} else if was, known := f.learnt[to]; !known || was.mtu != mtu {
		f.learnt[to] = learnt{mtu, now}
		p.hear(mtu, ByKernel)
	} else if !whole.After(was.since) {
		p.hear(mtu, ByKernel)
	}
	if carries > 0 {
		p.hear(carries, ByProbes)
	}
	return p
}

// choose returns the device that this node's MTU is of, and why.
func (f *Finder) choose(self control.Node, wanted hostnet.Device, peers []control.Node) (hostnet.Device, string, error) {
	first := f.local[0]
	switch {
	case f.choice.Interface != "" && !wanted.Inert:
		return wanted, "node.interface", nil
	case !first.on.Inert:
		return first.on, fmt.Sprintf("has %v", first.addr), nil
	}
	for i := range peers {
		to, _ := control.Endpoint(self, peers[i])
		if p := f.paths[to]; p.Device != "" {
			d, err := f.kernel.Device(p.Device)
			return d, fmt.Sprintf("leads to %v", to), err
		}
	}
	name, err := f.kernel.DefaultDevice()
	if err != nil {
		return hostnet.Device{}, "", fmt.Errorf("egress: %v is on %s, by which nothing leaves: %w", first.addr, first.on.Name, err)
	}
	d, err := f.kernel.Device(name)
	return d, "has the default route", err
}
