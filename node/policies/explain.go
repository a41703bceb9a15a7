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

// Allowed says whether the policies in force allow a connection, as Explain does, at the cost of a few lookups: the rules as they are written are
// asked only where the other end is a pod of another node.
func (m *Manager) Allowed(t policy.Traffic) (bool, error) {
	m.mu.Lock()
	world, program, prefixes, without := m.inForce, m.program, m.prefixes, m.without()
	m.mu.Unlock()
	switch {
	case world == nil:
		return false, errNotYet
	case without:
		return true, nil
	}
	if allowed, _, _ := program.Judge(t); !allowed {
		return false, nil
	}
	elsewhere := false
	for _, end := range []netip.Addr{t.Src, t.Dst} {
		if known := world.Known(end); !known && unlisted(prefixes, end) {
			return false, nil
		} else if known && !within(prefixes, end) {
			elsewhere = true
		}
	}
	return !elsewhere || world.Evaluate(t).Allowed, nil
}

var errNotYet = errors.New("network policies are not in force yet: `weft policy list` says why, and --file asks a file")

// without says that there are no policies, so no table. The caller holds m.mu.
func (m *Manager) without() bool {
	return m.inForce != nil && m.inForce.Empty() && len(m.said.Policies) == 0
}

// now is what is in force, and the node's own prefixes with it.
func (m *Manager) now() (*policy.World, []netip.Prefix, error) {
	m.mu.Lock()
	world, prefixes, said, without := m.inForce, m.prefixes, m.said, m.without()
	everyone := m.everyone
	if m.everyRev != said.Revision {
		everyone = nil
	}
	m.mu.Unlock()
	switch {
	case world == nil:
		return nil, nil, errNotYet
	case !without:
		return world, prefixes, nil
	case everyone != nil:
		return everyone, nil, nil
	}
	all, err := said.World() // nobody waits for it
	if err != nil {
		return world, prefixes, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.everyone, m.everyRev = all, said.Revision
	return all, nil, nil
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// unlisted says whether an address that is not known is a pod's of this node, who is denied everything for that.
func unlisted(prefixes []netip.Prefix, a netip.Addr) bool {
	if !within(prefixes, a) {
		return false
	}
	mine, _ := net.InterfaceAddrs() // what the node itself sends and gets is not judged
	return !slices.ContainsFunc(mine, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr().Unmap() == a
	})
}

// unknown adds what the table does with ends that have addresses of this node and are not listed.
func (m *Manager) unknown(world *policy.World, prefixes []netip.Prefix, a *policy.Explained) {
	for d, end := range []netip.Addr{a.Src, a.Dst} {
		if world.Known(end) || !unlisted(prefixes, end) {
			continue
		}
		a.Allowed = false
		a.Ends = append(a.Ends, policy.ExplainedSide{Direction: policy.Direction(d).String(), Pod: end.String(), Tier: nft.Unknown,
			Text:   fmt.Sprintf("denied: it has an address of this node's prefixes, and %s knows no pod that has it", m.o.Source),
			Remedy: fmt.Sprintf("see that %s knows the pod that has %s", m.o.Source, end), Notes: []string{}, Asked: []policy.ExplainedRule{}})
	}
	slices.SortStableFunc(a.Ends, func(x, y policy.ExplainedSide) int { return cmp.Compare(x.Direction, y.Direction) }) // egress first
}
