package contender

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/perf/testbed"
)

func threeNodes() []*testbed.Node {
	var nodes []*testbed.Node
	for i, name := range []string{"a", "b", "c"} {
		n := byte(i + 1)
		nodes = append(nodes, &testbed.Node{
			Name:      name,
			Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, n})},
			Prefixes:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 15: n}), 128)},
		})
	}
	return nodes
}

// TestAssociations: what one node sends the other can open, with a key that no other direction has; each pair of prefixes has its policy.
func TestAssociations(t *testing.T) {
	nodes := threeNodes()
	all, err := associations(nodes)
	if err != nil {
		t.Fatal(err)
	}
	var keys [][]byte
	for i, from := range nodes {
		if len(all[i].states) != 4 || len(all[i].policies) != 12 {
			t.Errorf("node %s has %d states and %d policies, want 4 and 12", from.Name, len(all[i].states), len(all[i].policies))
		}
		for j, to := range nodes {
			if i == j {
				continue
			}
			here := find(all[i].states, from, to)
			there := find(all[j].states, from, to)
			if here == nil || there == nil || here.Spi != there.Spi || !bytes.Equal(here.Aead.Key, there.Aead.Key) {
				t.Fatalf("from %s to %s: %v at one end, %v at the other", from.Name, to.Name, here, there)
			}
			if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, here.Aead.Key) }) {
				t.Errorf("the key from %s to %s serves twice", from.Name, to.Name)
			}
			keys = append(keys, here.Aead.Key)
			for k := range from.Prefixes {
				for dir, at := range map[netlink.Dir]security{netlink.XFRM_DIR_OUT: all[i], netlink.XFRM_DIR_IN: all[j], netlink.XFRM_DIR_FWD: all[j]} {
					if !slices.ContainsFunc(at.policies, func(p netlink.XfrmPolicy) bool {
						return p.Dir == dir && p.Src.String() == from.Prefixes[k].String() && p.Dst.String() == to.Prefixes[k].String() &&
							p.Tmpls[0].Src.Equal(here.Src) && p.Tmpls[0].Dst.Equal(here.Dst)
					}) {
						t.Errorf("no policy %s from %s to %s", dir, from.Prefixes[k], to.Prefixes[k])
					}
				}
			}
		}
	}
}

func find(states []netlink.XfrmState, from, to *testbed.Node) *netlink.XfrmState {
	i := slices.IndexFunc(states, func(s netlink.XfrmState) bool {
		return s.Src.Equal(from.Endpoints[0].AsSlice()) && s.Dst.Equal(to.Endpoints[0].AsSlice())
	})
	if i < 0 {
		return nil
	}
	return &states[i]
}

// TestESPMTU: a packet of the inner MTU fills the outer one as far as padding to four bytes allows; one byte more does not fit.
func TestESPMTU(t *testing.T) {
	outer := func(inner int) int { return 20 + espHeader + (inner+2+3)/4*4 + gcmTag }
	for mtu := 1280; mtu < 1300; mtu++ {
		if n := espMTU(mtu); outer(n) > mtu || outer(n+1) <= mtu {
			t.Errorf("underlay %d: inner %d makes %d, one more %d", mtu, n, outer(n), outer(n+1))
		}
	}
}

// TestIPsecInTheKernel: the kernel takes the policies as they are meant. The states it takes where it has ESP with AES-GCM; where
// not, the contender says so.
func TestIPsecInTheKernel(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireKernel(t, kernel.Veth)
	all, err := associations(threeNodes())
	if err != nil {
		t.Fatal(err)
	}
	ns := nettest.New(t)
	err = <-ns.Go(func() error {
		link, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer link.Close()
		ours := all[0]
		if missing := kernel.ESP.Probe(); missing != nil {
			if err := ours.install(link); err == nil {
				t.Error("the kernel took states that it is said not to have")
			}
			ours.states = nil
		}
		if err := ours.install(link); err != nil {
			return err
		}
		list, err := link.XfrmPolicyList(netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, want := range ours.policies {
			if !slices.ContainsFunc(list, func(p netlink.XfrmPolicy) bool {
				return p.Dir == want.Dir && p.Src.String() == want.Src.String() && p.Dst.String() == want.Dst.String() && len(p.Tmpls) == 1 &&
					p.Tmpls[0].Mode == netlink.XFRM_MODE_TUNNEL && p.Tmpls[0].Dst.Equal(want.Tmpls[0].Dst)
			}) {
				t.Errorf("the kernel lacks %s; it has %v", want, list)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
