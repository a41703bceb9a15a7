package netns

import (
	"slices"
	"strings"
	"testing"

	"weft/perf/contender"
)

// TestLabels: each contender has a label of its own, short enough for a file's name with more around it, whatever programs are called.
func TestLabels(t *testing.T) {
	long := "exec:" + strings.Repeat("x", 300)
	p := &Plan{}
	for _, name := range []string{"bare", "tun-gso+aes-128-gcm", "exec:a.b", "exec:a_b", long + "1", long + "2"} {
		p.Contenders = append(p.Contenders, contender.Contender{Name: name})
	}
	got := p.labels()
	cut := "exec_" + strings.Repeat("x", 43)
	if want := []string{"bare", "tun-gso+aes-128-gcm", "exec_a_b", "exec_a_b-4", cut + "-5", cut + "-6"}; !slices.Equal(got, want) {
		t.Errorf("labels %q, want %q", got, want)
	}
}
