package daemon

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"weft/control"
	"weft/hostnet/egress"
	"weft/node/pathmtu"
)

// measure has the paths to the peers measured until ctx ends, and the backend heed what is found out.
func (d *Daemon) measure(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- pathmtu.New(d.unmeasured, d.measured, d.log).Run(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case <-d.sized.News():
			d.lookAt(nil)
		}
	}
}

// unmeasured lists the peers that are reached, and how large packets to them should be.
func (d *Daemon) unmeasured() (list []pathmtu.Peer) {
	s := d.backend.Status()
	own, _ := d.ownPrefixes()
	if !s.Ready {
		return nil
	}
	for _, h := range s.Hops {
		p := pathmtu.Peer{Node: h.Node, Endpoint: h.Endpoint.Addr(), Inner: innerAddress(own, h.Prefixes)}
		path, known := d.sized.Path(p.Endpoint)
		if !known || !p.Inner.IsValid() {
			continue
		}
		p.Whole = s.InnerMTU - (s.UnderlayMTU - min(path.MTU, s.UnderlayMTU))
		if h.Narrowed != "" {
			p.Narrowed, p.Lied = h.MTU, path.By == egress.ByRouter
		}
		list = append(list, p)
	}
	return list
}

// measured takes note of what a visit has found out, if it is about the path that there is now.
func (d *Daemon) measured(p pathmtu.Peer, carries int, at time.Time) {
	path, known := d.sized.Path(p.Endpoint)
	s := d.backend.Status()
	if !known || p.Whole != s.InnerMTU-(s.UnderlayMTU-min(path.MTU, s.UnderlayMTU)) {
		return
	}
	if carries == p.Whole {
		d.sized.Found(p.Endpoint, path, path.MTU, at)
	} else {
		d.sized.Found(p.Endpoint, path, carries+s.UnderlayMTU-s.InnerMTU, at)
	}
}

// innerAddresses are those of the peers that are reached, one a family that we have, too.
func (d *Daemon) innerAddresses(own []netip.Prefix) (list []netip.Addr) {
	for _, h := range d.backend.Status().Hops {
		for _, v6 := range []bool{false, true} {
			is := func(p netip.Prefix) bool { return p.Addr().Is6() == v6 }
			if theirs := slices.IndexFunc(h.Prefixes, is); theirs >= 0 && slices.ContainsFunc(own, is) {
				list = append(list, control.HostAddr(h.Prefixes[theirs]))
			}
		}
	}
	return list
}

// innerAddress is the address of its own that a node with these prefixes has inside, of a family that we have, too; invalid = there is none.
func innerAddress(own, theirs []netip.Prefix) netip.Addr {
	for _, t := range theirs {
		if slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Addr().Is4() == t.Addr().Is4() }) {
			return control.HostAddr(t)
		}
	}
	return netip.Addr{}
}
