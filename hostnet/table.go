package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// object is one entry of a kernel table: the whole value says what it is, its key (K) what the kernel tells it
// apart by.
type object[K comparable] interface {
	comparable
	fmt.Stringer
	key() K
	device() string // the link it needs, "" for none
	shared() bool   // others may rightly have an object with this key

	// index is the device's number.
	add(rt *handle, index int, replace bool) error
	remove(rt *handle, index int) error
	evict(rt *handle, index int) error // removes whatever has the object's key
}

// syncTable adds and corrects what one table misses of want, and returns what it holds besides. dump reads the
// table, before is what the last Apply left in it, now is set to what this one does.
//
// A dump of a table that others change meanwhile may miss an entry (the kernel marks only some of these), so
// what looks missing is added under the condition that nothing has its place. What has, if anything, further
// dumps tell: the object itself after all, or a usurper.
func syncTable[T object[K], K comparable](p *pass, want wanted[K, T], dump func() ([]T, error), before map[K]T, now *map[K]T) []T {
	have, err := dump()
	if err != nil {
		// Nothing can be compared: leave the table alone rather than guess.
		*now = before
		p.fail(fmt.Errorf("hostnet: %w", err))
		return nil
	}
	right, other := compare(want, have)
	var todo []change[T]
	type wait struct {
		owner  *owner
		device string
	}
	waiting := map[wait]int{} // objects by who wants them and the device that does not exist
	for _, o := range want.list {
		if _, exists := p.index[o.device()]; !exists && o.device() != "" {
			waiting[wait{want.by[o.key()].owner, o.device()}]++
			continue
		}
		if holds(right, o) {
			continue
		}
		right[o.key()] = o
		c := change[T]{to: o, ours: holds(before, o) || !o.shared(), reason: "it was missing"}
		if there := other[o.key()]; len(there) > 0 {
			c.ours, c.replace, c.reason = true, true, "it was "+there[0].String()
			other[o.key()] = there[1:]
		}
		todo = append(todo, c)
	}
	for w, n := range waiting {
		w.owner.fail(&ObjectError{Object: fmt.Sprintf("%d objects", n), Dev: w.device, Err: fmt.Errorf("device %s does not exist", w.device)})
	}
	for _, c := range carryOut(p, todo, dump) {
		switch {
		case c.err != nil:
			delete(right, c.to.key())
			want.by[c.to.key()].owner.fail(&ObjectError{Object: c.to.String(), Dev: c.to.device(), Err: c.err, Holder: p.h.holder(c.to, c.err)})
		case holds(before, c.to) && !c.there && !p.anew[c.to.device()]:
			p.repaired("put back", c.to, c.reason)
		}
	}
	*now = right
	var strays []T
	for _, list := range other {
		strays = append(strays, list...)
	}
	return strays
}

// compare sorts a table into the wanted objects that are right, and the rest by key.
func compare[T object[K], K comparable](want wanted[K, T], have []T) (right map[K]T, other map[K][]T) {
	right, other = make(map[K]T, len(want.list)), map[K][]T{}
	for _, o := range have {
		if w, ok := want.by[o.key()]; ok && w.object == o {
			right[o.key()] = o
		} else {
			other[o.key()] = append(other[o.key()], o)
		}
	}
	return right, other
}

// change is one object to be put into the kernel, and how that went.
type change[T any] struct {
	to      T
	replace bool   // something of ours has its place
	ours    bool   // whatever has its place may be replaced
	reason  string // for the log
	there   bool   // it was there all the time
	err     error
}

// carryOut makes changes and returns them with their outcome.
func carryOut[T object[K], K comparable](p *pass, todo []change[T], dump func() ([]T, error)) []change[T] {
	var taken []*change[T] // something has their place
	for i := range todo {
		c := &todo[i]
		index := p.index[c.to.device()]
		c.err = c.to.add(p.h.rt, index, c.replace)
		if errors.Is(c.err, unix.EINVAL) && c.ours {
			// IPv6 refuses to move a route to another device in one step: it looks the new next hop up in
			// the old route.
			c.err = errors.Join(c.to.evict(p.h.rt, index), c.to.add(p.h.rt, index, false))
			p.h.wrote = true
		}
		if errors.Is(c.err, unix.EEXIST) {
			taken = append(taken, c)
		}
	}
	// An object that is there after all shows in one of the dumps; so does what of ours has its place.
	var usurped []*change[T]
	for tries := 0; tries < maxDumps && len(taken) > 0; tries++ {
		have, err := dump()
		there, keys := make(map[T]bool, len(have)), make(map[K]bool, len(have))
		for _, o := range have {
			there[o], keys[o.key()] = true, true
		}
		var unseen []*change[T]
		for _, c := range taken {
			switch {
			case err != nil:
				c.err = err
			case there[c.to]:
				c.there, c.err = true, nil
			case keys[c.to.key()]:
				usurped = append(usurped, c)
			default: // missed again, or a stranger that no dump of ours shows
				unseen = append(unseen, c)
			}
		}
		taken = unseen
	}
	for _, c := range append(usurped, taken...) {
		if c.ours {
			c.err = c.to.add(p.h.rt, p.index[c.to.device()], true)
		}
	}
	for _, c := range todo {
		p.h.wrote = p.h.wrote || c.err == nil && !c.there
	}
	return todo
}

// maxDumps bounds how often a table is read to learn what has an object's place: each reading may miss it anew.
const maxDumps = 5

// ObjectError says why an object that somebody wants is not in force.
type ObjectError struct {
	Object string
	Dev    string // the link that it is, or needs; "" for none
	Err    error
	Holder string // what has its place, and what to do about that, where that is known
}

func (e *ObjectError) Error() string {
	if e.Holder != "" {
		return fmt.Sprintf("hostnet: add %s: %v: %s", e.Object, e.Err, e.Holder)
	}
	if errors.Is(e.Err, unix.EEXIST) && e.Object != "link "+e.Dev { // of a link, whoever makes it says what is in the way
		return fmt.Sprintf("hostnet: add %s: %v: something that is not weft's has its place; remove that", e.Object, e.Err)
	}
	if strings.HasPrefix(e.Object, "nftables") { // it says so itself
		return fmt.Sprintf("hostnet: add %s: %v", e.Object, e.Err)
	}
	return fmt.Sprintf("hostnet: add %s: %v%s", e.Object, e.Err, hint(e.Err))
}

func (e *ObjectError) Unwrap() error { return e.Err }

// remove takes strays away. before holds what weft itself wanted last: that is retired, not repaired.
func remove[T object[K], K comparable](p *pass, strays []T, before map[K]T) {
	for _, o := range strays {
		retired := holds(before, o)
		if !retired && !p.settled {
			continue // somebody who has not spoken yet may want it
		}
		if !p.first && !retired {
			p.repaired("took away", o, "not wanted")
		}
		p.h.wrote = true
		if err := o.remove(p.h.rt, p.index[o.device()]); err != nil && !gone(err) {
			p.fail(fmt.Errorf("hostnet: remove %s: %w%s", o, err, hint(err)))
		}
	}
}

// gone says whether an object could not be removed because it is not there: with its device, its source
// address, or by another hand.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL)
}

// holds says whether a table has just this object.
func holds[T object[K], K comparable](table map[K]T, o T) bool {
	have, ok := table[o.key()]
	return ok && have == o
}
