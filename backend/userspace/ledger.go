package userspace

import (
	"maps"

	"weft/backend"
	"weft/dataplane"
	"weft/packet"
)

// ledger keeps what closed engines had counted, so that reopening a path never loses a count.
type ledger struct {
	lanes  map[string]dataplane.LaneStats
	tx, rx []dataplane.PeerStats
	kernel map[string]uint64
}

// retire adds a stopped engine's counts.
func (g *ledger) retire(e *engine) {
	lanes, tx, rx := e.stats()
	if g.lanes == nil {
		g.lanes = map[string]dataplane.LaneStats{}
	}
	for _, s := range lanes {
		g.lanes[s.Name] = addLane(s, g.lanes[s.Name])
	}
	g.tx, g.rx = addPeers(g.tx, tx), addPeers(g.rx, rx)
	g.kernel = addCounts(g.kernel, kernelDrops(e))
}

// total adds the ledger to a running engine's counts; e may be nil.
func (g *ledger) total(e *engine) (lanes []dataplane.LaneStats, tx, rx []dataplane.PeerStats, kernel map[string]uint64) {
	tx, rx = addPeers(nil, g.tx), addPeers(nil, g.rx)
	kernel = addCounts(nil, g.kernel)
	if e == nil {
		for _, s := range g.lanes {
			lanes = append(lanes, s)
		}
		return lanes, tx, rx, kernel
	}
	now, t, r := e.stats()
	for i := range now {
		now[i] = addLane(now[i], g.lanes[now[i].Name])
	}
	return now, addPeers(tx, t), addPeers(rx, r), addCounts(kernel, kernelDrops(e))
}

// addLane adds the older counts o of the same lane to s; stages pair up by name.
func addLane(s, o dataplane.LaneStats) dataplane.LaneStats {
	s.Turns += o.Turns
	s.Received += o.Received
	s.Copied += o.Copied
	s.Sent += o.Sent
	s.Waited += o.Waited
	s.Age += o.Age
	for _, st := range o.Stages {
		found := false
		for i := range s.Stages {
			if t := &s.Stages[i]; t.Name == st.Name {
				t.Calls += st.Calls
				t.Packets += st.Packets
				t.Timed += st.Timed
				t.Nanos += st.Nanos
				t.Drops.Add(&st.Drops)
				found = true
				break
			}
		}
		if !found {
			s.Stages = append(s.Stages, st)
		}
	}
	return s
}

func addCounts(sum, c map[string]uint64) map[string]uint64 {
	if sum == nil {
		sum = map[string]uint64{}
	}
	for k, v := range c {
		sum[k] += v
	}
	return sum
}

func kernelDrops(e *engine) map[string]uint64 {
	sum := map[string]uint64{}
	for _, p := range []packet.Port{e.inside, e.outside} {
		if k, ok := p.(packet.KernelDrops); ok {
			sum = addCounts(sum, k.KernelDrops())
		}
	}
	return sum
}

func rings(e *engine) (all []backend.Ring) {
	for _, p := range []packet.Port{e.inside, e.outside} {
		if r, ok := p.(packet.Ringed); ok {
			for _, c := range r.Rings() {
				all = append(all, backend.Ring(c))
			}
		}
	}
	return all
}

func features(e *engine) map[string]string {
	all := map[string]string{}
	for _, p := range []packet.Port{e.inside, e.outside} {
		if f, ok := p.(packet.Features); ok {
			maps.Copy(all, f.Features())
		}
	}
	return all
}
