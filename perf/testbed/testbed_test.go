package testbed

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, nodes int, layout Layout) *Bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	bed, err := Open(Config{Label: Label(fmt.Sprintf("t%d-%s", nodes, layout)), Nodes: nodes, MTU: 1500, Layout: layout, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	return bed
}

func connect(t *testing.T, bed *Bed) {
	t.Helper()
	for _, n := range bed.Nodes {
		for _, far := range bed.Nodes {
			if far == n {
				continue
			}
			for i, p := range far.Prefixes {
				if err := n.Host.Route(p, Underlay, far.Endpoints[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestReach(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			bed := open(t, nodes, Split)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := bed.Reach(ctx, 1500); err == nil {
				t.Fatal("pods reach each other before anything connects the nodes")
			}
			connect(t, bed)
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := bed.Reach(ctx, 1500); err != nil {
				t.Fatal(err)
			}
			if err := bed.SetPodMTU(1400); err != nil {
				t.Fatal(err)
			}
			short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := bed.Reach(short, 1401); err == nil {
				t.Fatal("a packet above the pods' MTU arrived")
			}
			if err := bed.Reach(ctx, 1400); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var _ = strings.Contains
var _ = filepath.Join
var _ netip.Addr
