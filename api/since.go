package api

// Busy is the part of the lane's time that it did not spend waiting for packets, 0 to 1.
func (l Lane) Busy() float64 {
	if l.Age <= 0 {
		return 0
	}
	return min(1, max(0, 1-float64(l.Waited)/float64(l.Age)))
}

// Since returns what lanes did between two looks at them. A lane that began in between, or began
// anew, counts from its beginning.
func Since(before, after []Lane) []Lane {
	old := map[string]Lane{}
	for _, l := range before {
		old[l.Name] = l
	}
	lanes := make([]Lane, len(after))
	for i, l := range after {
		lanes[i] = l.since(old[l.Name])
	}
	return lanes
}

func (l Lane) since(b Lane) Lane {
	if b.Age > l.Age || b.Turns > l.Turns || len(b.Stages) != len(l.Stages) {
		return l
	}
	l.Turns -= b.Turns
	l.Received -= b.Received
	l.Copied -= b.Copied
	l.Sent -= b.Sent
	l.Waited -= b.Waited
	l.Age -= b.Age
	stages := make([]Stage, len(l.Stages))
	for i, s := range l.Stages {
		o := b.Stages[i]
		s.Calls -= o.Calls
		s.Packets -= o.Packets
		s.Timed -= o.Timed
		s.Nanos -= o.Nanos
		drops := map[string]uint64{}
		for name, n := range s.Drops {
			if d := n - o.Drops[name]; d > 0 {
				drops[name] = d
			}
		}
		s.Drops = drops
		stages[i] = s
	}
	l.Stages = stages
	return l
}
