package perf

import (
	"fmt"
	"slices"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// since returns what was counted between two readings.
func (r reading) since(before reading) (m moved, err error) {
	if m.lanes, err = lanesSince(r.lanes, before.lanes); err != nil {
		return m, err
	}
	m.kernel = r.kernel.Since(before.kernel)
	m.segments = r.kernel.SegmentsSince(before.kernel)
	m.multicast = r.kernel.MulticastSince(before.kernel)
	merge(m.kernel, r.drops, before.drops)
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
	for _, place := range []string{testbed.Veth, testbed.Device} {
		n := min(twice, kernel[place])
		twice -= n
		if kernel[place] -= n; kernel[place] == 0 {
			delete(kernel, place)
		}
	}
}

// others is how many of the drops were not of the generators' UDP packets: TCP segments of their control
// connection, and what nodes sent of themselves (MLD reports), which no overlay carries.
func (m moved) others() uint64 {
	lost := max(int64(m.segments.Sent)-int64(m.segments.Received), 0)
	strays := m.kernel[testbed.Device] // a Linux vxlan device drops what is for a group
	for _, l := range m.lanes {
		strays += l.Drops["no-route"] + l.Drops["not-ip"]
	}
	return uint64(lost) + min(strays, m.multicast)
}

// lanesSince returns what each lane counted between two readings.
func lanesSince(now, before []contender.Lane) ([]contender.Lane, error) {
	var diff []contender.Lane
	for _, n := range now {
		i := slices.IndexFunc(before, func(b contender.Lane) bool { return b.Node == n.Node && b.Name == n.Name })
		if i < 0 || before[i].Received > n.Received {
			return nil, fmt.Errorf("perf: lane %s of node %s began anew during the sample: the daemon restarted its path", n.Name, n.Node)
		}
		b := before[i]
		d := contender.Lane{Node: n.Node, Name: n.Name, Received: n.Received - b.Received, Sent: n.Sent - b.Sent, Drops: map[string]uint64{}}
		for reason, count := range n.Drops {
			if count > b.Drops[reason] {
				d.Drops[reason] = count - b.Drops[reason]
			}
		}
		for k, s := range n.Stages {
			if k < len(b.Stages) && b.Stages[k].Name == s.Name { // the stages of a lane are the same all its life
				s.Packets -= b.Stages[k].Packets
				s.Timed -= b.Stages[k].Timed
				s.Nanos -= b.Stages[k].Nanos
			}
			d.Stages = append(d.Stages, s)
		}
		diff = append(diff, d)
	}
	return diff, nil
}

// balances adds the samples of one test up into accounts: one a lane, and for UDP one from end to end.
func balances(c contender.Contender, t probe.Selection, samples []*sample) []Balance {
	rows := laneBalances(c.Name, t, samples)
	path := &PathBalance{EndToEnd: true, LaneDrops: map[string]uint64{}, KernelDrops: map[string]uint64{}}
	for _, s := range samples {
		path.Generated += s.result.Generated
		path.Delivered += s.result.Delivered
		path.Corrupt += s.result.CorruptPackets
		path.OtherDrops += s.moved.others()
		add(path.KernelDrops, s.moved.kernel)
		for _, l := range s.moved.lanes {
			add(path.LaneDrops, l.Drops)
		}
	}
	if path.Generated == 0 {
		return rows // not UDP: TCP makes packets of its own
	}
	path.Unaccounted = int64(path.Generated+path.OtherDrops) - int64(path.Delivered+path.Corrupt+sum(path.LaneDrops)+sum(path.KernelDrops))
	return append(rows, Balance{
		Contender: c.Name, Test: t.Test, Params: t.Params, PathBalance: path,
		OK: path.Unaccounted >= 0 && path.Unaccounted <= hidden(c, t, path.KernelDrops),
	})
}

// hidden is how many packets may have died inside super-packets, which the kernel counts as one each wherever it
// does not cut them first; it cuts them for sockets that do not ask for them whole.
func hidden(c contender.Contender, t probe.Selection, kernel map[string]uint64) int64 {
	if !c.Super && t.Params["gso"] == 0 {
		return 0
	}
	whole := sum(kernel)
	if t.Params["gro"] == 0 && !c.Super {
		whole -= kernel[testbed.SocketOverflow] + kernel[testbed.SocketRefused]
	}
	return int64(whole) * (probe.MaxSegments - 1)
}

// laneBalances adds up what each lane counted.
func laneBalances(name string, t probe.Selection, samples []*sample) []Balance {
	var rows []Balance
	for _, s := range samples {
		for _, l := range s.moved.lanes {
			i := slices.IndexFunc(rows, func(b Balance) bool { return b.Node == l.Node && b.Lane == l.Name })
			if i < 0 {
				i = len(rows)
				rows = append(rows, Balance{
					Contender: name, Test: t.Test, Params: t.Params,
					LaneBalance: &LaneBalance{Node: l.Node, Lane: l.Name, Drops: map[string]uint64{}},
				})
			}
			rows[i].Received += l.Received
			rows[i].Sent += l.Sent
			add(rows[i].Drops, l.Drops)
		}
	}
	for i := range rows {
		rows[i].OK = rows[i].Received == rows[i].Sent+sum(rows[i].Drops)
	}
	return rows
}

func add(to, from map[string]uint64) {
	for k, n := range from {
		to[k] += n
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
