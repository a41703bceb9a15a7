package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Explained is a verdict and how it came about, for people and programs.
type Explained struct {
	Src      netip.Addr      `json:"src"`
	SrcName  string          `json:"src_name"`
	Dst      netip.Addr      `json:"dst"`
	DstName  string          `json:"dst_name"`
	Protocol Protocol        `json:"protocol"` // IP protocol number
	Port     uint16          `json:"port"`
	Allowed  bool            `json:"allowed"`
	Ends     []ExplainedSide `json:"ends"` // those that are pods: the source's egress, the destination's ingress
}

// ExplainedSide is what the policies of one end say.
type ExplainedSide struct {
	Direction string          `json:"direction"`
	Pod       string          `json:"pod"`  // "" = it is a node
	Node      string          `json:"node"` // where policies are about nodes
	Allowed   bool            `json:"allowed"`
	Tier      string          `json:"tier"` // "" = no policy had anything to say
	Policy    string          `json:"policy"`
	Rule      string          `json:"rule"`
	Text      string          `json:"text"`
	Remedy    string          `json:"remedy,omitempty"`
	Notes     []string        `json:"notes"` // rules that log it, and what staged policies would do
	Asked     []ExplainedRule `json:"asked"`
}

// End names the pod or node.
func (s *ExplainedSide) End() string {
	if s.Pod == "" {
		return "node " + s.Node
	}
	return "pod " + s.Pod
}

// ExplainedRule is a rule that was looked at, up to the one that decided.
type ExplainedRule struct {
	Tier   string `json:"tier"`
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Action string `json:"action"`
	Peer   bool   `json:"peer"` // the other end is one that the rule means
	Port   bool   `json:"port"` // and so is the port
}

// Listed is a policy in short.
type Listed struct {
	Policy   string       `json:"policy"`
	Tier     string       `json:"tier"`
	Kind     string       `json:"kind"`
	Order    int          `json:"order"` // of the tier
	Priority int          `json:"priority"`
	Staged   bool         `json:"staged"`   // it decides nothing
	Isolates []string     `json:"isolates"` // directions
	Rules    []ListedRule `json:"rules"`
	Pods     []string     `json:"pods"`  // that it selects
	Nodes    []string     `json:"nodes"` // that it selects
}

// ListedRule is a rule in words.
type ListedRule struct {
	Rule   string   `json:"rule"`
	Action string   `json:"action"`
	Peers  []string `json:"peers"` // empty = everybody
	Ports  []string `json:"ports"` // empty = all
}

// Explain judges connections from src to dst, each NAMESPACE/POD or an address, one in each family that both have. Port is 80, tcp/80,
// udp/53, sctp/9, icmp, or another protocol as proto/47.
func (w *World) Explain(src, dst, port string) ([]Explained, error) {
	protocol, number, err := ParsePort(port)
	if err != nil {
		return nil, err
	}
	from, err := w.addresses(src)
	if err != nil {
		return nil, err
	}
	to, err := w.addresses(dst)
	if err != nil {
		return nil, err
	}
	var list []Explained
	families := map[bool]bool{}
	for _, a := range from {
		for _, b := range to {
			if a.Is4() == b.Is4() && !families[a.Is4()] {
				families[a.Is4()] = true
				list = append(list, w.ExplainTraffic(Traffic{Src: a, Dst: b, Protocol: protocol, Port: number}))
			}
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("policy: %s and %s have no address of one family", src, dst)
	}
	return list, nil
}

func (w *World) addresses(text string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	namespace, name, ok := strings.Cut(text, "/")
	if !ok {
		return nil, fmt.Errorf("policy: %q is neither an address nor NAMESPACE/POD", text)
	}
	pod := w.Pod(namespace, name)
	if pod == nil {
		return nil, fmt.Errorf("policy: there is no pod %s among the workloads", text)
	}
	return pod.Addresses, nil
}

// ParsePort reads a port as Explain takes it.
func ParsePort(text string) (Protocol, uint16, error) {
	if text == "icmp" {
		return 1, 0, nil
	}
	kind, number, ok := strings.Cut(text, "/")
	if !ok {
		kind, number = "tcp", text
	}
	bits := 16
	if kind == "proto" {
		bits = 8
	}
	n, err := strconv.ParseUint(number, 10, bits)
	protocol, known := map[string]Protocol{"tcp": TCP, "udp": UDP, "sctp": SCTP}[kind]
	switch {
	case err == nil && kind == "proto":
		return Protocol(n), 0, nil
	case err == nil && known:
		return protocol, uint16(n), nil
	}
	return 0, 0, fmt.Errorf("policy: %q is not a port: write it like 80, tcp/80, udp/53, sctp/9, icmp or proto/47", text)
}

// ExplainTraffic judges a connection.
func (w *World) ExplainTraffic(q Traffic) Explained {
	a := w.Evaluate(q)
	e := Explained{Src: q.Src, SrcName: w.Name(q.Src), Dst: q.Dst, DstName: w.Name(q.Dst), Protocol: q.Protocol, Port: q.Port, Allowed: a.Allowed, Ends: []ExplainedSide{}}
	for d, o := range []Opinion{a.Egress, a.Ingress} {
		if o.Pod == "" && o.Node == "" {
			continue
		}
		s := ExplainedSide{Direction: Direction(d).String(), Pod: o.Pod, Node: o.Node, Notes: []string{}, Allowed: !o.Reason.Deny, Tier: o.Reason.Tier.String(), Policy: o.Reason.Policy,
			Rule: o.Reason.Rule, Text: o.Reason.String(), Remedy: o.Remedy, Asked: []ExplainedRule{}}
		for _, r := range o.Asked {
			s.Asked = append(s.Asked, ExplainedRule{r.Tier.String(), r.Policy, r.Rule, r.Action.String(), r.Peer, r.Port})
		}
		for _, n := range o.Notes {
			s.Notes = append(s.Notes, n.String())
		}
		e.Ends = append(e.Ends, s)
	}
	return e
}

// List tells all policies in the order in which they are asked.
func (w *World) List() []Listed {
	list := []Listed{} // never nil: in JSON a list is a list
	for _, p := range w.Policies() {
		l := Listed{Policy: p.String(), Tier: p.Tier.String(), Kind: p.Tier.kind(), Order: p.Tier.Order, Priority: p.Priority, Staged: p.Staged,
			Isolates: []string{}, Rules: []ListedRule{}, Pods: []string{}, Nodes: []string{}}
		for _, d := range directions {
			for i := range p.Rules[d] {
				r := &p.Rules[d][i]
				k := ListedRule{Rule: r.name(d, i), Action: r.Action.String(), Peers: []string{}, Ports: []string{}}
				for _, x := range r.Peers {
					k.Peers = append(k.Peers, x.String())
				}
				for _, x := range r.Ports {
					k.Ports = append(k.Ports, x.String())
				}
				l.Rules = append(l.Rules, k)
			}
			if p.Isolates[d] {
				l.Isolates = append(l.Isolates, d.String())
			}
		}
		for _, pod := range w.pods {
			if w.Selects(p, pod) {
				l.Pods = append(l.Pods, pod.String())
			}
		}
		for _, n := range w.nodes {
			if w.contains(&p.Subject, endpoint{node: n}) {
				l.Nodes = append(l.Nodes, n.Name)
			}
		}
		list = append(list, l)
	}
	return list
}
