package policies

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"weft/policy"
	"weft/policy/nft"
)

// Explain says what the policies in force say about connections, as policy.World.Explain does, and what the table does with pods that the
// source does not know.
func (m *Manager) Explain(src, dst, port string) ([]policy.Explained, error) {
	world, prefixes, err := m.now()
	if err != nil {
		return nil, err
	}
	answers, err := world.Explain(src, dst, port)
	if err != nil {
		return nil, err
	}
	for i := range answers {
		m.unknown(world, prefixes, &answers[i])
	}
	return answers, nil
}

// Enforced says what this node does about a connection: by the policies about its own pods, and about itself.
func (m *Manager) Enforced(t policy.Traffic) ([]policy.ExplainedSide, error) {
	world, prefixes, err := m.now()
	if err != nil {
		return nil, err
	}
	a := world.ExplainTraffic(t)
	m.unknown(world, prefixes, &a)
	ours := map[string]bool{}
	for d, end := range []netip.Addr{t.Src, t.Dst} {
		ours[policy.Direction(d).String()] = within(prefixes, end) || m.o.Name != "" && world.NodeAt(end) == m.o.Name
	}
	return slices.DeleteFunc(a.Ends, func(e policy.ExplainedSide) bool { return !ours[e.Direction] }), nil
}

// Allowed says whether the policies in force allow a connection, as Explain does.
func (m *Manager) Allowed(t policy.Traffic) (bool, error) {
	world, prefixes, err := m.now()
	if err != nil {
		return false, err
	}
	a := world.ExplainTraffic(t)
	m.unknown(world, prefixes, &a)
	return a.Allowed, nil
}

// now is what is in force, and the node's own prefixes with it.
func (m *Manager) now() (*policy.World, []netip.Prefix, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inForce == nil {
		return nil, nil, errors.New("network policies are not in force yet: `weft policy list` says why, and --file asks a file")
	}
	if len(m.inForce.Policies()) == 0 && len(m.said.Policies) == 0 { // it lacks pods of others, and there is no table
		if all, err := m.said.World(); err == nil {
			return all, nil, nil
		}
	}
	return m.inForce, m.prefixes, nil
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unknown adds what the table does with ends that have addresses of this node and are not listed.
func (m *Manager) unknown(world *policy.World, prefixes []netip.Prefix, a *policy.Explained) {
	mine, _ := net.InterfaceAddrs() // what the node itself sends and gets is not judged
	for d, end := range []netip.Addr{a.Src, a.Dst} {
		own := slices.ContainsFunc(mine, func(n net.Addr) bool {
			p, err := netip.ParsePrefix(n.String())
			return err == nil && p.Addr().Unmap() == end
		})
		if world.Known(end) || own || !within(prefixes, end) {
			continue
		}
		a.Allowed = false
		a.Ends = append(a.Ends, policy.ExplainedSide{Direction: policy.Direction(d).String(), Pod: end.String(), Tier: nft.Unknown,
			Text:   fmt.Sprintf("denied: it has an address of this node's prefixes, and %s knows no pod that has it", m.o.Source),
			Remedy: fmt.Sprintf("see that %s knows the pod that has %s", m.o.Source, end), Notes: []string{}, Asked: []policy.ExplainedRule{}})
	}
	slices.SortStableFunc(a.Ends, func(x, y policy.ExplainedSide) int { return cmp.Compare(x.Direction, y.Direction) }) // egress first
}
