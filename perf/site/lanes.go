package site

import (
	"fmt"
	"maps"
	"slices"
)

// LanesSince returns what each lane counted between two readings.
func LanesSince(now, before []Lane) ([]Lane, error) {
	var diff []Lane
	for _, n := range now {
		i := slices.IndexFunc(before, func(b Lane) bool { return b.Node == n.Node && b.Name == n.Name })
		if i < 0 || before[i].Received > n.Received {
			return nil, fmt.Errorf("lane %s of node %s began anew during the sample: the daemon restarted its path", n.Name, n.Node)
		}
		b := before[i]
		d := Lane{Node: n.Node, Name: n.Name, Received: n.Received - b.Received, Sent: n.Sent - b.Sent, Drops: map[string]uint64{}}
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

// SameLanes says that no lane of two readings counted anything between them.
func SameLanes(a, b []Lane) bool { return slices.EqualFunc(a, b, sameLane) }

func sameLane(a, b Lane) bool {
	return a.Node == b.Node && a.Name == b.Name && a.Received == b.Received && a.Sent == b.Sent && maps.Equal(a.Drops, b.Drops)
}
