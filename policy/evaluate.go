package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// Traffic is the first packet of a connection, behind all address translation.
type Traffic struct {
	Src, Dst netip.Addr
	Protocol Protocol
	Port     uint16 // the destination's; 0 where the protocol has none
}

func (t Traffic) String() string {
	if t.Protocol == TCP || t.Protocol == UDP || t.Protocol == SCTP {
		return fmt.Sprintf("%s → %s %s %d", t.Src, t.Dst, t.Protocol, t.Port)
	}
	return fmt.Sprintf("%s → %s %s", t.Src, t.Dst, t.Protocol)
}

// Reason is a verdict in one direction and whose word it is.
type Reason struct {
	Deny bool
	Tier Tier // NoTier = nobody's: allowed
	// Policy is the one that decided; where a pod is isolated and no rule allows, all that isolate it, with commas.
	Policy string
	Rule   string // like ingress[0], with its name if it has one; "" where no rule matched
}

func (r Reason) String() string {
	verdict := "allowed"
	if r.Deny {
		verdict = "denied"
	}
	switch {
	case r.Tier == NoTier:
		return verdict + ": no policy is about it"
	case r.Rule == "":
		return fmt.Sprintf("%s: isolated by NetworkPolicy %s, of which no rule allows it", verdict, r.Policy)
	case r.Tier == Namespaced:
		return fmt.Sprintf("%s by NetworkPolicy %s, rule %s", verdict, r.Policy, r.Rule)
	}
	return fmt.Sprintf("%s by ClusterNetworkPolicy %s of tier %s, rule %s", verdict, r.Policy, r.Tier, r.Rule)
}

// Answer is a verdict and how it came about.
type Answer struct {
	Allowed         bool
	Egress, Ingress Opinion
}

// Opinion is what one end's policies say.
type Opinion struct {
	Pod    string // whose; "" = that end is no pod, and nobody is asked
	Reason Reason
	Asked  []Asked // the rules that were looked at, in their order
	// Remedy says what would have to change for a denied connection to pass, "" where it does.
	Remedy string
}

// Asked is a rule that was looked at.
type Asked struct {
	Tier   Tier
	Policy string
	Rule   string
	Action Action
	Peer   bool // the other end is one that the rule means
	Port   bool // and so is the port
}

// Evaluate judges a connection by the rules as they are written.
func (w *World) Evaluate(t Traffic) Answer {
	src, dst := w.end(t.Src), w.end(t.Dst)
	a := Answer{Egress: w.opinion(src, dst, Egress, t), Ingress: w.opinion(dst, src, Ingress, t)}
	a.Allowed = !a.Egress.Reason.Deny && !a.Ingress.Reason.Deny
	return a
}

// opinion asks the policies of one end about the other.
func (w *World) opinion(own, other endpoint, d Direction, t Traffic) Opinion {
	if own.pod == nil {
		return Opinion{}
	}
	o := Opinion{Pod: own.pod.String()}
	o.Reason = w.judge(own, other, d, t, &o.Asked)
	if o.Reason.Deny {
		o.Remedy = remedy(o.Reason, own, other, d, t)
	}
	return o
}

func (w *World) judge(own, other endpoint, d Direction, t Traffic, asked *[]Asked) Reason {
	named := own.named()
	if d == Egress {
		named = other.named()
	}
	for _, tier := range []Tier{Admin, Namespaced, Baseline} {
		var isolating []string
	tier:
		for _, p := range w.policies[tier] {
			if !p.about(d) || !w.contains(&p.Subject, own) {
				continue
			}
			if p.Isolates[d] {
				isolating = append(isolating, p.String())
			}
			for i := range p.Rules[d] {
				r := &p.Rules[d][i]
				k := Asked{Tier: tier, Policy: p.String(), Rule: r.name(d, i), Action: r.Action, Peer: w.meansPeer(r, other), Port: r.meansPort(t, named)}
				*asked = append(*asked, k)
				switch {
				case !k.Peer || !k.Port:
				case r.Action == Pass:
					break tier
				default:
					return Reason{Deny: r.Action == Deny, Tier: tier, Policy: k.Policy, Rule: k.Rule}
				}
			}
		}
		if len(isolating) > 0 {
			return Reason{Deny: true, Tier: tier, Policy: strings.Join(isolating, ", ")}
		}
	}
	return Reason{}
}

// name is how messages call the rule of number i.
func (r *Rule) name(d Direction, i int) string {
	if r.Name != "" {
		return fmt.Sprintf("%s[%d] %q", d, i, r.Name)
	}
	return fmt.Sprintf("%s[%d]", d, i)
}

func (w *World) meansPeer(r *Rule, e endpoint) bool {
	if r.Peers == nil {
		return true
	}
	for i := range r.Peers {
		if w.contains(&r.Peers[i], e) {
			return true
		}
	}
	return false
}

func (r *Rule) meansPort(t Traffic, named []NamedPort) bool {
	if r.Ports == nil {
		return true
	}
	for _, p := range r.Ports {
		if p.matches(t.Protocol, t.Port, named) {
			return true
		}
	}
	return false
}

// remedy says what would have to change.
func remedy(r Reason, own, other endpoint, d Direction, t Traffic) string {
	what := t.Protocol.String()
	if t.Protocol == TCP || t.Protocol == UDP || t.Protocol == SCTP {
		what += fmt.Sprintf(" %d", t.Port)
	} else {
		what += " (by a rule without ports)"
	}
	to := "from"
	if d == Egress {
		to = "to"
	}
	if r.Rule != "" {
		return fmt.Sprintf("change rule %s of %s, or put a rule that accepts %s %s %s before it", r.Rule, r.Policy, what, to, other)
	}
	return fmt.Sprintf("allow %s %s %s in a rule for %s of a NetworkPolicy that selects pod %s: of %s, or of one more", what, to, other, d, own.pod, r.Policy)
}
