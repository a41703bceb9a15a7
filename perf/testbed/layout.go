package testbed

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Layout says which cores the nodes may use. Figures of different layouts are never compared.
type Layout string

const (
	// Split: each node's processes have their own share of the cores, and the receive work of its
	// links is steered there, as if nodes were machines.
	Split Layout = "split"
	// Free: the scheduler decides.
	Free Layout = "free"
)

// ParseLayout reads a layout's name.
func ParseLayout(s string) (Layout, error) {
	switch l := Layout(s); l {
	case Split, Free:
		return l, nil
	}
	return "", fmt.Errorf("layout %q: give split or free", s)
}

// shares returns each node's cores, out of those this process may use.
func (l Layout) shares(nodes int) ([][]int, error) {
	if l != Split {
		return make([][]int, nodes), nil
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("testbed: read the cores this process may use: %w", err)
	}
	var cpus []int
	for c := 0; len(cpus) < set.Count(); c++ {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return share(cpus, nodes), nil
}

// share deals cores to nodes: equal runs of neighbours where there are enough, else one core each,
// in turn, so that several nodes share one.
func share(cpus []int, nodes int) [][]int {
	shares := make([][]int, nodes)
	for i := range shares {
		if per := len(cpus) / nodes; per > 0 {
			shares[i] = cpus[i*per : (i+1)*per]
		} else {
			k := i % len(cpus)
			shares[i] = cpus[k : k+1]
		}
	}
	return shares
}
