package perf

import (
	"fmt"
	"slices"

	"weft/perf/contender"
	"weft/perf/probe"
)

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
		diff = append(diff, d)
	}
	return diff, nil
}

// balances adds the samples of one test up into accounts: one a lane, and for UDP one from end to end.
func balances(name string, t probe.Selection, samples []*sample) []Balance {
	var rows []Balance
	for _, s := range samples {
		for _, l := range s.lanes {
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
	var sent uint64
	path := &PathBalance{EndToEnd: true, LaneDrops: map[string]uint64{}, KernelDrops: map[string]uint64{}}
	for _, s := range samples {
		path.Generated += s.result.Generated
		path.Delivered += s.result.Delivered
		sent += s.sent
		add(path.KernelDrops, s.kernel)
		for _, l := range s.lanes {
			add(path.LaneDrops, l.Drops)
		}
	}
	if path.Generated == 0 {
		return rows // not UDP: TCP makes packets of its own
	}
	path.Unaccounted = int64(path.Generated) - int64(path.Delivered+sum(path.LaneDrops)+sum(path.KernelDrops))
	// The generators' control connection sends packets too, and they can die like any other: then
	// there are more drops than losses, by no more than their number.
	others := max(int64(sent)-int64(path.Generated), 0)
	return append(rows, Balance{
		Contender: name, Test: t.Test, Params: t.Params, PathBalance: path,
		OK: path.Unaccounted <= 0 && -path.Unaccounted <= others,
	})
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
