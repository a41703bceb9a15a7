package netns

import (
	"context"
	"maps"

	"weft/perf/contender"
	"weft/perf/site"
	"weft/perf/testbed"
)

// reading is the state of all packet counters of a testbed.
type reading struct {
	lanes  []site.Lane
	kernel testbed.KernelCounts
	drops  site.Drops
}

// Count implements site.Setup.
func (s *setup) Count(ctx context.Context) (site.Reading, error) {
	r, err := s.read(ctx)
	if err != nil {
		return nil, s.explain(err)
	}
	return r, nil
}

func (s *setup) read(ctx context.Context) (r reading, err error) {
	if r.lanes, err = s.overlay.Lanes(ctx); err != nil {
		return r, err
	}
	if r.drops, err = s.overlay.Drops(ctx); err != nil {
		return r, err
	}
	r.kernel, err = s.bed.KernelCounts()
	return r, err
}

// Same implements site.Reading.
func (r reading) Same(other site.Reading) bool {
	o, ok := other.(reading)
	return ok && site.SameLanes(r.lanes, o.lanes) && maps.Equal(r.drops.Kernel, o.drops.Kernel) && r.kernel.Same(o.kernel)
}

// Since implements site.Reading.
func (r reading) Since(earlier site.Reading) (m site.Moved, err error) {
	before := earlier.(reading) // of the same setup
	if m.Lanes, err = site.LanesSince(r.lanes, before.lanes); err != nil {
		return m, err
	}
	m.Kernel = r.kernel.Since(before.kernel)
	m.Segments = r.kernel.SegmentsSince(before.kernel)
	m.Multicast = r.kernel.MulticastSince(before.kernel)
	merge(m.Kernel, r.drops, before.drops)
	return m, nil
}

// merge adds to what the kernel's counters say what only the contender's sockets know. Some of it are the same
// packets, counted by the veth where they died: the underlay's, or the contender's own.
func merge(kernel map[string]uint64, now, before contender.Drops) {
	for name, count := range now.Kernel {
		if n := count - before.Kernel[name]; n > 0 {
			kernel[name] += n
		}
	}
	twice := now.AtVeth - before.AtVeth
	for _, place := range []string{site.Veth, site.Device} {
		n := min(twice, kernel[place])
		twice -= n
		if kernel[place] -= n; kernel[place] == 0 {
			delete(kernel, place)
		}
	}
}
