package testbed

import (
	"reflect"
	"testing"
)

func TestShare(t *testing.T) {
	for _, c := range []struct {
		cpus  []int
		nodes int
		want  [][]int
	}{
		{[]int{0, 1}, 2, [][]int{{0}, {1}}},
		{[]int{2, 5, 6, 7}, 2, [][]int{{2, 5}, {6, 7}}},
		{[]int{0, 1, 2, 3, 4}, 2, [][]int{{0, 1}, {2, 3}}},
		{[]int{0, 1}, 3, [][]int{{0}, {1}, {0}}},
		{[]int{3}, 2, [][]int{{3}, {3}}},
	} {
		if got := share(c.cpus, c.nodes); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v for %d nodes: %v, want %v", c.cpus, c.nodes, got, c.want)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for _, c := range []struct {
		cpus []int
		want string
	}{{[]int{0}, "1"}, {[]int{1}, "2"}, {[]int{0, 1, 5}, "23"}, {[]int{31}, "80000000"}, {[]int{32}, "1,00000000"}, {[]int{0, 64}, "1,00000000,00000001"}} {
		if got := cpuMask(c.cpus); got != c.want {
			t.Errorf("mask of %v is %s, want %s", c.cpus, got, c.want)
		}
	}
}
