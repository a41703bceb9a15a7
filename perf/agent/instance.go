package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"weft/catalog/mode"
	"weft/perf/contender"
	"weft/perf/machine"
	"weft/perf/site"
	"weft/perf/testbed"
)

const (
	// maxNodes is how many hosts an instance may join: each has a third byte of the prefix.
	maxNodes = 200
	// maxSlots is how many instances there may be at once, each with two UDP ports from instancePort on, the first of them in use, and a
	// network from instanceVNI on: none of them a daemon's default.
	maxSlots     = 16
	instancePort = 8482
	instanceVNI  = 0xbe9c
)

// Prefixes of instances: those for benchmarks (RFC 2544, appendix C.2.2), and a unique local one (RFC 4193) that is nobody's.
var instanceNetwork = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd9c:be9c:be9c::/48")}

// up is an instance of one of weft's modes. Everything it makes is in two network namespaces that are the agent's, a node's and a
// pod's; all that it has in the host's is its UDP socket. So it can be beside whatever the host runs, and what the agent does not take
// away, the end of the processes does, or the next agent.
type up struct {
	bed     *testbed.Bed
	overlay contender.Overlay
	dir     string
	self    int
	atNIC   bool
}

// AtDevice says that a contender has a program at the host's own device while it is up. That changes what the device does for others, too: a veth
// cuts their super-packets (net/core/dev.c and drivers/net/veth.c: no segmentation offload towards XDP), a NIC may reset its link.
func AtDevice(name string) bool {
	base, _, _ := strings.Cut(name, "+")
	m, ok := mode.Find(mode.All(), base)
	return ok && m.Outside == mode.AFXDP
}

// supported says why a contender is none between hosts, in one line; device says that it may use the host's own by AF_XDP. atNIC is that it does.
func supported(name string, device bool) (c contender.Contender, atNIC bool, err error) {
	refuse := func(reason string) (contender.Contender, bool, error) {
		return c, false, &site.UnsupportedError{Reason: reason}
	}
	if strings.HasPrefix(name, "exec:") {
		return refuse("an agent runs no programs for others")
	}
	list, err := contender.Parse(name)
	if err != nil {
		return c, false, err
	}
	if len(list) != 1 {
		return c, false, fmt.Errorf("%q is not one contender", name)
	}
	base, _, _ := strings.Cut(name, "+")
	for _, m := range mode.All() {
		switch {
		case m.Name != base:
		case m.Wire == mode.Direct:
			return refuse("a contender without a tunnel would be routes of the hosts' own, which bench does not touch: contender bare is what they carry")
		case m.Outside == mode.AFXDP && !device:
			return refuse("its AF_XDP end is at the host's own underlay device, whose driver may reset the link: where that is no harm, start the agent with --xdp")
		default:
			if err := list[0].Needs(); err != nil {
				return refuse(err.Error())
			}
			return list[0], AtDevice(name), nil
		}
	}
	return refuse("between hosts bench has the underlay, weft's modes with a tunnel and others' paths")
}

// bringUp starts this host's part of an instance; taken says that another one has a program at the host's device.
func bringUp(ctx context.Context, a *agent, name string, o *OpenOrder, taken bool) (_ *up, err error) {
	c, atNIC, err := supported(name, a.XDP)
	if err != nil {
		return nil, err
	}
	if atNIC && taken {
		return nil, &site.UnsupportedError{Reason: "the host's device has one program at a time, and another contender over AF_XDP is up"}
	}
	u := &up{self: o.Self, atNIC: atNIC}
	if u.dir, err = testbed.Dir(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.Close())
		}
	}()
	if u.dir, err = filepath.Abs(u.dir); err != nil {
		return nil, err
	}
	half := testbed.Half{Label: "bench-" + testbed.Label(name), Dir: u.dir, Self: o.Self, Network: instanceNetwork}
	if half.CPUs, err = processors(a.Cores); err != nil {
		return nil, err
	}
	if !testbed.HasIPv6() {
		half.Network = half.Network[:1]
	}
	for i, n := range o.Nodes {
		far := testbed.Far{Name: fmt.Sprintf("bench-%d", i), Endpoints: []netip.Addr{n.Endpoint.Unmap()}, Prefixes: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i + 1), 0}), 24),
			netip.MustParsePrefix(fmt.Sprintf("fd9c:be9c:be9c:%x::/64", i+1)),
		}[:len(half.Network)]}
		half.Nodes = append(half.Nodes, far)
	}
	if u.bed, err = testbed.OpenHalf(half); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	u.overlay, err = c.Up(ctx, contender.Env{Bed: u.bed, Weft: a.Program, Outside: a.netns,
		VNI: instanceVNI + uint32(o.Slot), Port: instancePort + 2*uint16(o.Slot), Secret: hex.EncodeToString(o.Secret)})
	return u, err
}

func (u *up) place() place            { return u.bed.Nodes[u.self].Pod }
func (u *up) addresses() []netip.Addr { return u.bed.Nodes[u.self].PodAddrs }
func (u *up) mtu() int                { return u.overlay.InnerMTU() }
func (u *up) device() bool            { return u.atNIC }

// Lanes implements instance.
func (u *up) Lanes(ctx context.Context) ([]site.Lane, error) { return u.overlay.Lanes(ctx) }

// Times implements instance.
func (u *up) Times() (map[string]machine.CPUTime, error) {
	times := map[string]machine.CPUTime{}
	for _, p := range u.overlay.Processes() {
		t, err := p.CPU()
		if err != nil {
			if ended := p.Ended(); ended != nil {
				err = ended
			}
			return nil, err
		}
		times[p.Name] = t
	}
	return times, nil
}

// Close implements instance.
func (u *up) Close() error {
	var err error
	if u.bed != nil {
		err = u.bed.Close()
	}
	return errors.Join(err, os.RemoveAll(u.dir))
}
