package run

import (
	"slices"

	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// others is how many of the drops were not of the generators' UDP packets: TCP segments of their control
// connection, and what nodes sent of themselves (MLD reports), which no overlay carries.
func others(m site.Moved) uint64 {
	lost := max(int64(m.Segments.Sent)-int64(m.Segments.Received), 0)
	strays := m.Kernel[site.Device] // a Linux vxlan device drops what is for a group
	for _, l := range m.Lanes {
		strays += l.Drops["no-route"] + l.Drops["not-ip"]
	}
	return uint64(lost) + min(strays, m.Multicast)
}

// balances adds the samples of one test up into accounts: one a lane, and for UDP one from end to end.
func balances(c site.About, t probe.Selection, samples []*sample) []result.Balance {
	rows := laneBalances(c, t, samples)
	path := &result.PathBalance{EndToEnd: true, LaneDrops: map[string]uint64{}, KernelDrops: map[string]uint64{}}
	open := false
	for _, s := range samples {
		open = open || s.moved.Open
		path.Generated += s.result.Generated
		path.Delivered += s.result.Delivered
		path.Corrupt += s.result.CorruptPackets
		path.OtherDrops += others(s.moved)
		add(path.KernelDrops, s.moved.Kernel)
		for _, l := range s.moved.Lanes {
			add(path.LaneDrops, l.Drops)
		}
	}
	if path.Generated == 0 || open {
		return rows // not UDP: TCP makes packets of its own; or not all places are counted
	}
	path.Unaccounted = int64(path.Generated+path.OtherDrops) - int64(path.Delivered+path.Corrupt+sum(path.LaneDrops)+sum(path.KernelDrops))
	return append(rows, result.Balance{
		Contender: c.Contender, Path: c.Path, Test: t.Test, Params: t.Params, PathBalance: path,
		OK: path.Unaccounted >= 0 && path.Unaccounted <= hidden(c, t, path.KernelDrops),
	})
}

// hidden is how many packets may have died inside super-packets, which the kernel counts as one each wherever it
// does not cut them first; it cuts them for sockets that do not ask for them whole.
func hidden(c site.About, t probe.Selection, kernel map[string]uint64) int64 {
	if !c.Super && t.Params["gso"] == 0 {
		return 0
	}
	whole := sum(kernel)
	if t.Params["gro"] == 0 && !c.Super {
		whole -= kernel[site.SocketOverflow] + kernel[site.SocketRefused]
	}
	return int64(whole) * (probe.MaxSegments - 1)
}

// laneBalances adds up what each lane counted.
func laneBalances(c site.About, t probe.Selection, samples []*sample) []result.Balance {
	var rows []result.Balance
	for _, s := range samples {
		for _, l := range s.moved.Lanes {
			i := slices.IndexFunc(rows, func(b result.Balance) bool { return b.Node == l.Node && b.Lane == l.Name })
			if i < 0 {
				i = len(rows)
				rows = append(rows, result.Balance{
					Contender: c.Contender, Path: c.Path, Test: t.Test, Params: t.Params,
					LaneBalance: &result.LaneBalance{Node: l.Node, Lane: l.Name, Drops: map[string]uint64{}},
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
