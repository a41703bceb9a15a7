package policies

import (
	"cmp"
	"slices"

	"weft/policy"
	"weft/policy/nft"
)

// What became of packets that are counted.
const (
	Denied     = "denied"
	Allowed    = "allowed"
	Logged     = "logged"
	WouldDeny  = "would-deny" // of a policy that is staged
	WouldAllow = "would-allow"
)

// Counter is what packets are counted by.
type Counter struct {
	What               string // Denied, …
	Tier, Policy, Rule string // Tier is "unknown" or "ended" for packets that no policy denied by itself
}

// Count is how many packets there were of it: of a connection, those of its own direction.
type Count struct {
	Counter
	Packets uint64
}

// counter says what a counter of the table counts.
func counter(rules *nft.Rules, name string) Counter {
	if r, ok := rules.Denied[name]; ok {
		return Counter{Denied, r.Tier.String(), r.Policy, r.Rule}
	}
	if r, ok := rules.Allowed[name]; ok {
		return Counter{Allowed, r.Tier.String(), r.Policy, r.Rule}
	}
	if n, ok := rules.Noted[name]; ok {
		return Counter{map[policy.Action]string{policy.Log: Logged, policy.Accept: WouldAllow, policy.Deny: WouldDeny}[n.Action], n.Tier.String(), n.Policy, n.Rule}
	}
	return Counter{What: Denied, Tier: name}
}

// count adds what the table has counted since the last look. A counter that went back is one of a table made anew. The caller holds m.mu.
func (m *Manager) count() error {
	if m.since.IsZero() || m.changing || m.rules.Table.Name == "" { // publish counts right after a change
		return nil
	}
	now, err := m.o.Host.Counts(nft.Family, nft.Name)
	if err != nil {
		return err
	}
	for name, n := range now[nft.Name] {
		before := m.seen[name]
		if n < before {
			before = 0
		}
		m.counted[counter(&m.rules, name)] += n - before
	}
	m.seen = now[nft.Name]
	return nil
}

// counts are all counters in order. The caller holds m.mu.
func (m *Manager) counts() (list []Count) {
	for c, n := range m.counted {
		list = append(list, Count{c, n})
	}
	slices.SortFunc(list, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.What, b.What), cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule))
	})
	return list
}
