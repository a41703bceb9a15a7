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
	Staged bool   // it is what would be if no policy were staged, and one that is decided so
}

// Note is what packets are counted by that a rule logs, or that a staged policy would decide about.
type Note struct {
	Action Action // Log; Accept or Deny = what a staged policy would do
	Tier   Tier
	Policy string // as in Reason
	Rule   string
}

func (n Note) String() string {
	text := map[Action]string{Log: "logged", Accept: "would be allowed", Deny: "would be denied"}[n.Action]
	text += fmt.Sprintf(" by %s %s of tier %s", n.Tier.kind(), n.Policy, n.Tier)
	if n.Rule == "" {
		return text + ", of which no rule allows it"
	}
	return text + ", rule " + n.Rule
}

// note is a staged policy's word.
func (r Reason) note() Note {
	n := Note{Accept, r.Tier, r.Policy, r.Rule}
	if r.Deny {
		n.Action = Deny
	}
	return n
}

func (r Reason) String() string {
	verdict := "allowed"
	if r.Deny {
		verdict = "denied"
	}
	switch {
	case r.Tier == NoTier:
		return verdict + ": no policy is about it"
	case r.Tier == Failsafe:
		return fmt.Sprintf("%s: such ports of nodes stay open whatever policies say", verdict)
	case r.Rule == "" && r.Tier == Namespaced:
		return fmt.Sprintf("%s: isolated by NetworkPolicy %s, of which no rule allows it", verdict, r.Policy)
	case r.Rule == "":
		return fmt.Sprintf("%s by tier %s, which denies what no rule of its policies allows: %s", verdict, r.Tier, r.Policy)
	case r.Tier == Namespaced:
		return fmt.Sprintf("%s by NetworkPolicy %s, rule %s", verdict, r.Policy, r.Rule)
	}
	return fmt.Sprintf("%s by %s %s of tier %s, rule %s", verdict, r.Tier.kind(), r.Policy, r.Tier, r.Rule)
}

// Answer is a verdict and how it came about.
type Answer struct {
	Allowed         bool
	Egress, Ingress Opinion
}

// Opinion is what one end's policies say.
type Opinion struct {
	Pod    string // whose; "" = that end is no pod
	Node   string // whose, where policies are about nodes; both "" = nobody is asked
	Reason Reason
	Notes  []Note  // rules that log it, in their order, and then what staged policies would say
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
func (w *World) opinion(own, other endpoint, d Direction, t Traffic) (o Opinion) {
	switch {
	case own.pod != nil:
		o.Pod = own.pod.String()
	case own.node != nil && w.hosts:
		o.Node = own.node.Name
	default:
		return o
	}
	o.Reason = w.judge(own, other, d, t, &o)
	if o.Reason.Deny {
		o.Remedy = remedy(o.Reason, own, other, d, t)
	}
	if w.staged {
		if r := w.judge(own, other, d, t, nil); r.Staged {
			o.Notes = append(o.Notes, r.note())
		}
	}
	return o
}

// judge asks the policies in their order and tells o of it. Where that is nil, it is asked what would be if no policy were staged.
func (w *World) judge(own, other endpoint, d Direction, t Traffic, o *Opinion) Reason {
	named := own.named()
	if d == Egress {
		named = other.named()
	}
	for _, tier := range w.tiers {
		var isolating []string
		staged := true // all that isolate are
	tier:
		for _, p := range tier.policies {
			if !p.about(d) || p.Staged && o != nil || !w.contains(&p.Subject, own) {
				continue
			}
			if p.Isolates[d] {
				isolating, staged = append(isolating, p.String()), staged && p.Staged
			}
			for i := range p.Rules[d] {
				r := &p.Rules[d][i]
				k := Asked{Tier: tier.tier, Policy: p.String(), Rule: r.name(d, i), Action: r.Action, Peer: w.meansPeer(r, other), Port: r.meansPort(t, named)}
				if o != nil {
					o.Asked = append(o.Asked, k)
				}
				switch {
				case !k.Peer || !k.Port:
				case r.Action == Log && o != nil:
					o.Notes = append(o.Notes, Note{Log, k.Tier, k.Policy, k.Rule})
				case r.Action == Log:
				case r.Action == Pass:
					isolating = nil
					break tier
				default:
					return Reason{Deny: r.Action == Deny, Tier: k.Tier, Policy: k.Policy, Rule: k.Rule, Staged: p.Staged}
				}
			}
		}
		if len(isolating) > 0 {
			return Reason{Deny: true, Tier: tier.tier, Policy: strings.Join(isolating, ", "), Staged: staged}
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
	of := "a NetworkPolicy"
	if r.Tier != Namespaced {
		of = "a policy of tier " + r.Tier.Name
	}
	return fmt.Sprintf("allow %s %s %s in a rule for %s of %s that selects %s: of %s, or of one more", what, to, other, d, of, own, r.Policy)
}
