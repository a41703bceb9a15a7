package flowcache

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"weft/backend"
	"weft/backend/status"
	"weft/control"
)

// cached is a way of the kernel to carry traffic, with the cache over it. Where there is no cache it is that way.
type cached struct {
	backend.Backend
	cache *Cache // nil = there is none
	why   string // that
}

// Over puts the cache over a way of the kernel whose wire is VXLAN without outer UDP checksums. Call it before the first Apply.
func Over(b backend.Backend, s backend.Settings) backend.Backend {
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	c := &cached{Backend: b}
	if s.Outside != nil {
		c.why = "packets to peers leave in another network namespace"
	} else if cache, err := New(Options{Port: s.Port, VNI: s.VNI, Host: s.Host, Log: s.Log}); err != nil {
		c.why = err.Error()
	} else {
		c.cache = cache
	}
	if c.cache == nil {
		s.Log.Warn("there is no flow cache: the kernel's own stack carries all flows", zap.String("reason", c.why))
		return c
	}
	s.Host.Follow(c.cache.Forget)
	return c
}

// Apply implements backend.Backend. What is in force is so with nothing remembered of what was before.
func (c *cached) Apply(s control.State) error {
	err := c.Backend.Apply(s)
	if c.cache != nil {
		now := c.Backend.Status()
		g := Forwarding{MAC: s.Self.VTEP(), Prefixes: s.Self.Prefixes, Peers: now.Hops, Underlay: now.Underlay}
		if err != nil {
			g = Forwarding{} // what is in force is not known
		}
		c.cache.Follow(g)
	}
	return err
}

// Run implements backend.Backend.
func (c *cached) Run(ctx context.Context, look func(broken error)) error {
	if c.cache == nil {
		return c.Backend.Run(ctx, look)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		err := c.cache.Run(ctx)
		if err != nil {
			cancel()
		}
		ended <- err
	}()
	err := c.Backend.Run(ctx, look)
	cancel()
	return errors.Join(err, <-ended)
}

// Close implements backend.Backend.
func (c *cached) Close() error {
	if c.cache == nil {
		return c.Backend.Close()
	}
	return errors.Join(c.cache.Close(), c.Backend.Close())
}

// Status implements backend.Backend.
func (c *cached) Status() backend.Status {
	s := c.Backend.Status()
	state := c.why
	if c.cache != nil {
		state = c.cache.Off()
		c.cache.Count(s.Hops)
		if n := c.cache.Lost(); n > 0 {
			s.KernelDrops["flow-cache no-memory"] = n
		}
	}
	if state == "" {
		state = "on"
	} else {
		state = "off: " + state
	}
	s.Features["flow-cache"] = state
	return s
}

// Flows lists what is cached, and what is not and why.
func (c *cached) Flows() []status.Flow {
	if c.cache == nil {
		return nil
	}
	return c.cache.Flows()
}
