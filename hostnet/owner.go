package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// owner is a part of the daemon that wants something of the kernel, known by its name.
type owner struct {
	name   string
	spoken bool  // it has applied a Want
	want   Want  // the last
	err    error // why not all of it is in force, nftables left aside

	firewallErr error // why not all its tables are

	changed chan struct{} // holds a token while something that the Want was planned from may have changed
}

// Contradiction is what two owners want otherwise of one object. What the owner wants that spoke first is in force.
type Contradiction struct {
	Owner, Other string // Other's is in force
	Want, Has    string // the object as either wants it
	Dev          string // the link that Want is, or needs; "" for none
}

func (c *Contradiction) Error() string {
	return fmt.Sprintf("hostnet: %s wants %s and %s has %s: one of them has to do without", c.Owner, c.Want, c.Other, c.Has)
}

// Unwrap makes it an EEXIST, as where the kernel says that something has an object's place.
func (c *Contradiction) Unwrap() error { return unix.EEXIST }

// owner returns the one of this name, made where it is not known yet. The caller holds h.mu.
func (h *Host) owner(name string) *owner {
	for _, o := range h.owners {
		if o.name == name {
			return o
		}
	}
	o := &owner{name: name, changed: make(chan struct{}, 1)}
	h.owners = append(h.owners, o)
	return o
}

// Changed returns a channel that gets a token when something an owner may have planned from has changed: the devices named in its
// Want.Watch, what this Host holds of its Want, or, for what no notification tells, once a second.
func (h *Host) Changed(owner string) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owner(owner).changed
}

// Err says why not all that an owner wanted last is in force; nil where it is, or where the owner has not spoken.
func (h *Host) Err(owner string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owner(owner).failure()
}

// Apply makes the kernel's state be w as far as owner goes, beside what the other owners want; see the package comment for what is
// ours. It is idempotent, and what is already right is not touched. On an error, which is about this owner's objects, the rest of w
// is in force, and Run goes on trying.
//
// While Run listens and has heard nothing that concerns us, the kernel holds what the last Apply left there: then a
// change of some nodes costs what these cost (applyChanges), and not what a look at the tables of thousands does.
func (h *Host) Apply(owner string, w Want) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := h.owner(owner)
	if len(h.followers) > 0 {
		defer h.followedIf(!o.spoken || !reflect.DeepEqual(o.want, w))
	}
	if h.listening.Load() && !h.doubtful() && h.prev != nil && o.spoken && o.err == nil && o.want.patchable(w) {
		if h.applyChanges(o, w) == nil {
			return o.firewallErr
		}
		// A look at the tables tells what is wrong.
	}
	o.want, o.spoken = w, true
	h.applyWhole()
	return o.failure()
}

func (o *owner) failure() error { return errors.Join(o.err, o.firewallErr) }

// doubtful says whether the kernel may hold something else than what the last Apply left there. The caller holds h.mu.
func (h *Host) doubtful() bool { return h.doubt.Load() || len(h.suspects) > 0 }

// repair looks at everything. What others have undone is put back.
func (h *Host) repair() {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.followedIf(false)
	switch {
	case h.prev == nil:
	case h.doubtful() || h.rt.tcx.broken():
		h.applyWhole()
	case h.firewallNews.Load():
		h.syncFirewall()
	}
}

// settled says whether every part that was announced to New has spoken: only then is what nobody wants a stranger.
func (h *Host) settled() bool {
	return !slices.ContainsFunc(h.owners, func(o *owner) bool { return !o.spoken })
}

// applyWhole makes the kernel's state be what all owners want, with a look at all that the kernel has. The caller holds h.mu.
func (h *Host) applyWhole() {
	h.doubt.Store(false) // what happens from here on casts a new one
	clear(h.suspects)
	began := time.Now()
	for _, o := range h.owners {
		o.err = nil
	}
	h.firewall.looking = 0
	newPass(h).run()
	h.whole.Store(int64(time.Since(began) - h.firewall.looking))
}

// fail records why an owner's Want is not wholly in force.
func (o *owner) fail(err error) {
	if err != nil {
		o.err = errors.Join(o.err, err)
	}
}

func (o *owner) failFirewall(err error) { o.firewallErr = errors.Join(o.firewallErr, err) }

// fail records an error that concerns every owner.
func (p *pass) fail(err error) {
	for _, o := range p.h.owners {
		o.fail(err)
	}
}

// wanted is what all owners want of one table: each object once.
type wanted[K comparable, T any] struct {
	list []T
	by   map[K]claim[T]
}

// claim is an object and who wants it.
type claim[T any] struct {
	object T
	owner  *owner
}

// merge puts together what all owners want of one table. What contradicts an earlier owner's is left out, and an error of the later.
func merge[T object[K], K comparable](p *pass, of func(*Want) []T) wanted[K, T] {
	owners := p.h.owners
	lists, n := make([][]T, len(owners)), 0
	for i, o := range owners {
		lists[i] = of(&o.want)
		n += len(lists[i])
	}
	w := wanted[K, T]{make([]T, 0, n), make(map[K]claim[T], n)}
	for i, o := range owners {
		for _, x := range lists[i] {
			have, taken := w.by[x.key()]
			switch {
			case !taken:
				w.list = append(w.list, x)
				w.by[x.key()] = claim[T]{x, o}
			case have.object != x:
				o.fail(&Contradiction{Owner: o.name, Other: have.owner.name, Want: x.String(), Has: have.object.String(), Dev: x.device()})
				fallthrough
			case have.owner != o:
				p.now.common[x.key()] = true
			}
		}
	}
	return w
}

// mergeLinks is merge for links, which cannot be compared by ==.
func (p *pass) mergeLinks() (links []claim[Link]) {
	for _, o := range p.h.owners {
		for _, l := range o.want.Links {
			at := slices.IndexFunc(links, func(have claim[Link]) bool { return have.object.Name == l.Name })
			switch {
			case at < 0:
				links = append(links, claim[Link]{l, o})
			case !links[at].object.same(l):
				o.fail(&Contradiction{Owner: o.name, Other: links[at].owner.name, Want: l.String(), Has: links[at].object.String(), Dev: l.Name})
				fallthrough
			case links[at].owner != o:
				p.now.common[linkKey(l.Name)] = true
			}
		}
	}
	return links
}

// mergeSysctls is merge for settings.
func (h *Host) mergeSysctls() (list []claim[Sysctl]) {
	for _, o := range h.owners {
		for _, s := range o.want.Sysctls {
			at := slices.IndexFunc(list, func(have claim[Sysctl]) bool { return have.object.Key == s.Key })
			switch {
			case at < 0:
				list = append(list, claim[Sysctl]{s, o})
			case list[at].object != s:
				o.fail(&Contradiction{Owner: o.name, Other: list[at].owner.name, Want: s.String(), Has: list[at].object.String()})
			}
		}
	}
	return list
}

// union puts together what needs no owner.
func union[T comparable](h *Host, of func(*Want) []T) (all []T) {
	for _, o := range h.owners {
		for _, x := range of(&o.want) {
			if !slices.Contains(all, x) {
				all = append(all, x)
			}
		}
	}
	return all
}

// network returns the overlay's prefixes.
func (h *Host) network() []netip.Prefix {
	return union(h, func(w *Want) []netip.Prefix { return w.Network })
}
