package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// town is where the tables' policies are tried: namespaces x and y, in each a client and a server of both families.
const town = `
namespaces:
  - {name: x, labels: {team: blue}}
  - {name: y, labels: {team: red, tier: back}}
pods:
  - {name: client, namespace: x, labels: {app: client, env: prod}, addresses: [10.0.0.1, "fd00::1"]}
  - {name: server, namespace: x, labels: {app: server}, addresses: [10.0.0.2, "fd00::2"], ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
  - {name: client, namespace: y, serviceAccount: deployer, labels: {app: client}, addresses: [10.0.0.3, "fd00::3"]}
  - {name: server, namespace: y, labels: {app: server}, addresses: [10.0.0.4, "fd00::4"], ports: [{name: http, port: 8080}, {name: dns, port: 53}]}
nodes:
  - {name: alpha, labels: {kind: metal}, addresses: [192.0.2.1, "2001:db8::1"]}
tiers:
  - {name: security, order: 500, default: Deny}
  - {name: before, order: 1500}
  - {name: after, order: 2500, default: Pass}
  - {name: last, order: 4000, default: Deny}
networkSets:
  - {name: offices, networks: [198.51.100.0/24, "2001:db8:1::/64"]}
policies:
`

// names are who takes part; each is tried over both families.
var names = map[string][2]string{
	"xc": {"10.0.0.1", "fd00::1"}, "xs": {"10.0.0.2", "fd00::2"}, "yc": {"10.0.0.3", "fd00::3"}, "ys": {"10.0.0.4", "fd00::4"},
	"node": {"192.0.2.1", "2001:db8::1"}, "out": {"198.51.100.9", "2001:db8:1::9"},
}

// np and cnp are a policy of the table: its name, namespace and spec.
func np(name, namespace, spec string) string {
	return "  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: " + name + ", namespace: " + namespace + "}, spec: " + spec + "}\n"
}

func cnp(name, spec string) string {
	return "  - {apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: " + name + "}, spec: " + spec + "}\n"
}

// own is a policy of our own kind.
func own(name, spec string) string {
	return "  - {apiVersion: policy.weft/v1alpha1, kind: Policy, metadata: {name: " + name + "}, spec: " + spec + "}\n"
}

// question reads "xc xs TCP 80".
func question(t *testing.T, text string, family int) Traffic {
	t.Helper()
	f := strings.Fields(text)
	end := func(s string) netip.Addr {
		if of, ok := names[s]; ok {
			s = of[family]
		}
		return netip.MustParseAddr(s)
	}
	q := Traffic{Src: end(f[0]), Dst: end(f[1])}
	switch f[2] {
	case "TCP":
		q.Protocol = TCP
	case "UDP":
		q.Protocol = UDP
	case "SCTP":
		q.Protocol = SCTP
	case "ICMP":
		q.Protocol = 1
		return q
	}
	port, err := strconv.ParseUint(f[3], 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	q.Port = uint16(port)
	return q
}

// denied and allowed hold questions, separated by commas.
type semantics struct {
	name, policies  string
	allowed, denied string
}

// The lines are those of the NetworkPolicy API's documentation, and of ClusterNetworkPolicy's.
var table = []semantics{
	{"no policy: open", "", "xc xs TCP 80, out xs UDP 1, xc out ICMP, xc node TCP 22", ""},
	{"selected: only what rules allow; others stay open",
		np("a", "x", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"),
		"xc xs TCP 80, xc xs ICMP, yc xc TCP 1, xs out TCP 1, xs yc TCP 1", "yc xs TCP 80, out xs TCP 80, node xs TCP 80"},
	{"policies add up, in any order",
		np("b", "x", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: \"2001:db8:1::/64\"}}]}]}") + np("a", "x", "{podSelector: {}}"),
		"out xs TCP 80", "yc xs TCP 80, xc xs TCP 80"},
	{"both ends have to agree",
		np("out", "x", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}") + np("in", "y", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"),
		"xc ys TCP 80", "xc ys TCP 81, xc out TCP 80"},
	{"without policyTypes ingress always, egress with rules only", np("a", "x", "{podSelector: {}, egress: [{ports: [{port: 443}]}]}"),
		"xc out TCP 443", "out xc TCP 443, xc out TCP 80"},
	{"without policyTypes and without egress rules egress stays open", np("a", "x", "{podSelector: {}}"), "xc out TCP 1", "out xc TCP 1"},
	{"policyTypes Egress alone denies all egress, and does not isolate ingress", np("a", "x", "{podSelector: {}, policyTypes: [Egress]}"),
		"out xc TCP 1, yc xc TCP 1", "xc out TCP 1, xc yc UDP 1, xc out ICMP"},
	{"rules of a direction that policyTypes leaves out count for nothing",
		np("a", "x", "{podSelector: {}, policyTypes: [Egress], ingress: [], egress: [{}]}"), "out xc TCP 1, xc out TCP 1", ""},
	{"an empty list of rules denies all", np("a", "x", "{podSelector: {}, ingress: []}"), "xc out TCP 1", "yc xs TCP 80, xc xs TCP 80"},
	{"an empty rule allows all", np("a", "x", "{podSelector: {}, ingress: [{}]}"), "yc xs TCP 80, out xs ICMP, out xs SCTP 7", ""},
	{"an empty podSelector is the policy's namespace and no other", np("a", "x", "{podSelector: {}}"), "xc ys TCP 80", "yc xc TCP 80, yc xs TCP 80"},
	{"podSelector alone is of the own namespace", np("a", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}"),
		"xc xs TCP 80", "yc xs TCP 80"},
	{"namespaceSelector alone is all pods of it", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}"),
		"yc xs TCP 80, ys xs TCP 80", "xc xs TCP 80, out xs TCP 80"},
	{"both in one are both", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: client}}}]}]}"),
		"yc xs TCP 80", "ys xs TCP 80, xc xs TCP 80"},
	{"two are either", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: client}}}]}]}"),
		"yc xs TCP 80, ys xs TCP 80, xc xs TCP 80", "xs xc TCP 80, out xs TCP 80"},
	{"an empty namespaceSelector is all pods, and nobody outside", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"),
		"yc xs TCP 80, xc xs TCP 80", "out xs TCP 80, node xs TCP 80"},
	{"an empty from is everybody", np("a", "x", "{podSelector: {}, ingress: [{from: [], ports: [{port: 80}]}]}"), "yc xs TCP 80, out xs TCP 80", "yc xs TCP 81"},
	{"In", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [red, green]}]}}]}]}"),
		"yc xs TCP 1", "xc xs TCP 1"},
	{"NotIn matches an absent key", np("a", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}}]}]}"),
		"xs xc TCP 1", "xc xs TCP 1"},
	{"Exists", np("a", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: env, operator: Exists}]}}]}]}"), "xc xs TCP 1", "xs xc TCP 1"},
	{"DoesNotExist matches an absent key", np("a", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: env, operator: DoesNotExist}]}}]}]}"), "xs xc TCP 1", "xc xs TCP 1"},
	{"all of a selector has to hold", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}, matchExpressions: [{key: tier, operator: In, values: [front]}]}}]}]}"),
		"", "yc xs TCP 1"},
	{"a namespace has its name as a label", np("a", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]}]}"),
		"yc xs TCP 1", "xc xs TCP 1"},
	{"a protocol left out is TCP", np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), "xc xs TCP 80", "xc xs UDP 80, xc xs SCTP 80, xc xs TCP 79, xc xs ICMP"},
	{"a port left out is the whole protocol", np("a", "x", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}"), "xc xs UDP 0, xc xs UDP 65535", "xc xs TCP 80, xc xs ICMP"},
	{"UDP alone leaves TCP blocked, and SCTP alone both", np("a", "x", "{podSelector: {matchLabels: {app: server}}, ingress: [{ports: [{protocol: SCTP, port: 80}]}]}"),
		"xc xs SCTP 80", "xc xs TCP 80, xc xs UDP 80, xc xs SCTP 81"},
	{"a named port is the target's, and each target's own", np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}") + np("a", "y", "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"),
		"xc xs TCP 80, xc ys TCP 8080", "xc xs TCP 8080, xc ys TCP 80, xs xc TCP 80"},
	{"a named port is of its protocol", np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: dns}]}]}") + np("a", "y", "{podSelector: {}, ingress: [{ports: [{port: dns}]}]}"),
		"xc ys TCP 53", "xc xs UDP 53, xc xs TCP 53, xc ys UDP 53"},
	{"a named port of egress is the destination's", np("a", "x", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"),
		"xc xs TCP 80, xc ys TCP 8080", "xc xs TCP 8080, xc out TCP 80, xc node TCP 80, xs yc TCP 80"},
	{"endPort", np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 82}, {port: 82, endPort: 90, protocol: UDP}]}]}"),
		"xc xs TCP 80, xc xs TCP 82, xc xs UDP 90", "xc xs TCP 79, xc xs TCP 83, xc xs UDP 81"},
	{"ipBlock without its exceptions", np("a", "x", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.0.0/16, except: [198.51.100.0/24]}}, {ipBlock: {cidr: \"2001:db8:1::/48\", except: [\"2001:db8:1::/64\"]}}]}]}"),
		"xc 198.51.99.1 TCP 1, xc 2001:db8:1:1::1 TCP 1", "xc out TCP 1, xc 198.52.0.1 TCP 1, xc 2001:db8:2::1 TCP 1"},
	{"one rule's exception may be another's prefix", np("a", "x", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.0/24]}}, {ipBlock: {cidr: \"::/0\", except: [\"2001:db8:1::/64\"]}}]}, {to: [{ipBlock: {cidr: 198.51.100.8/29}}, {ipBlock: {cidr: \"2001:db8:1::8/125\"}}]}]}"),
		"xc out TCP 1, xc node TCP 1, xc xs TCP 1", "xc 198.51.100.1 TCP 1, xc 2001:db8:1::1 TCP 1"},
	{"the family of a block is its own", np("a", "x", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"),
		"xc 198.51.100.9 TCP 1", "xc 2001:db8:1::9 TCP 1"},

	{"Admin goes before NetworkPolicy", cnp("c", "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: red}}}]}]}") + np("a", "x", "{podSelector: {}, ingress: [{}]}"),
		"xc xs TCP 80, out xs TCP 80", "yc xs TCP 80"},
	{"Admin's Accept is final", cnp("c", "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}") + np("a", "x", "{podSelector: {}}"),
		"yc xs TCP 80", "yc xs TCP 81, out xs TCP 80"},
	{"lower priorities go first", cnp("late", "{tier: Admin, priority: 9, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}") + cnp("soon", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {range: {start: 10, end: 20}}}}]}]}"),
		"yc xs UDP 10, yc xs UDP 20, out xs TCP 1", "yc xs UDP 21, yc xs TCP 10"},
	{"the first rule that matches decides", cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: red}}}]}, {action: Deny, from: [{namespaces: {}}]}]}"),
		"yc xs TCP 80", "xc xs TCP 80"},
	{"Pass leaves the tier for the next", cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: red}}}]}, {action: Deny, from: [{namespaces: {}}]}]}") + np("a", "y", "{podSelector: {}}"),
		"yc xs TCP 80", "xc xs TCP 80, yc ys TCP 80"},
	{"a pod that a NetworkPolicy isolates is none of Baseline's", cnp("b", "{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}") + np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"),
		"yc xs TCP 80, out ys TCP 1", "yc xs TCP 81, xc ys TCP 80"},
	{"Baseline has the last word", cnp("b", "{tier: Baseline, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: server}}}}, ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {env: prod}}}}]}, {action: Deny, from: [{namespaces: {}}]}]}"),
		"xc ys TCP 80, out ys TCP 80, yc xc TCP 1", "yc ys TCP 80"},
	{"egress to nodes and networks", cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{nodes: {matchLabels: {kind: metal}}}], protocols: [{tcp: {destinationPort: {number: 22}}}]}, {action: Deny, to: [{nodes: {}}, {networks: [198.51.100.0/24, \"2001:db8:1::/64\"]}]}]}"),
		"xc node TCP 22, xc ys TCP 1, xc 203.0.113.1 TCP 1", "xc node TCP 80, xc out TCP 22"},
	{"a named port of any protocol", cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: dns}, {sctp: {}}]}]}"),
		"xc xs TCP 53, xc ys UDP 53", "xc xs UDP 53, xc ys TCP 53, xc ys SCTP 1"},

	// Our own kind.
	{"a tier before Admin", own("o", "{tier: security, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}") +
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"),
		"yc xs TCP 80", "yc xs TCP 81, out xs TCP 81"},
	{"a tier between Admin and NetworkPolicy", own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, protocols: [{tcp: {destinationPort: {range: {start: 80, end: 81}}}}]}]}") +
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}]}") + np("a", "x", "{podSelector: {}}"),
		"yc xs TCP 80, out xs TCP 81", "yc xs TCP 81, yc xs TCP 82"},
	{"a tier between NetworkPolicy and Baseline", own("o", "{tier: after, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, protocols: [{tcp: {}}]}]}") +
		cnp("c", "{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}") + np("a", "x", "{podSelector: {}}"),
		"xc ys TCP 80", "yc xs TCP 80, xc ys UDP 80"},
	{"a tier that denies by default, for pods that its policies select, in the directions that they are about",
		own("o", "{tier: last, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: server}}}}, policyTypes: [Ingress]}"), "xs out TCP 1, yc xc TCP 1", "xc ys TCP 80, out xs ICMP"},
	{"a tier that passes by default", own("o", "{tier: after, priority: 1, subject: {namespaces: {}}, policyTypes: [Ingress]}"), "xc ys TCP 80", ""},
	{"Pass leaves a tier that denies by default", own("o", "{tier: security, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, protocols: [{tcp: {}}]}]}"), "yc xs TCP 80", "yc xs UDP 53"},
	{"order within a tier", own("late", "{tier: before, priority: 9, subject: {namespaces: {}}, egress: [{action: Accept}]}") + own("soon", "{tier: before, priority: 2, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networkSets: [offices]}]}]}"),
		"xc ys TCP 1", "xc out TCP 1"},
	{"service accounts", own("o", "{tier: security, priority: 1, subject: {serviceAccounts: {namespaceSelector: {matchLabels: {team: blue}}, names: [default]}}, ingress: [{action: Accept, from: [{serviceAccounts: {namespaceSelector: {}, names: [deployer, other]}}]}]}"),
		"yc xs TCP 80, ys yc TCP 1", "xc xs TCP 80, ys xs TCP 80, out xs TCP 80"},
	{"sets of networks by name", own("o", "{tier: last, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{networkSets: [offices]}]}]}"), "out xs TCP 80", "xc xs TCP 80"},
	{"from nodes and networks", own("o", "{tier: last, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{nodes: {}}, {networks: [10.0.0.1/32, \"fd00::1/128\"]}]}]}"),
		"node xs TCP 80, xc xs TCP 80", "yc xs TCP 80, out xs TCP 1"},
	{"nodes are judged where policies select them, and their failsafe ports stay open",
		own("o", "{tier: security, priority: 1, subject: {nodes: {matchLabels: {kind: metal}}}, ingress: [{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}], protocols: [{tcp: {destinationPort: {number: 9100}}}]}], egress: [{action: Deny, protocols: [{udp: {}}]}]}"),
		"xc node TCP 9100, out node TCP 22, out node TCP 6443, out node TCP 2379, out node TCP 10250, node out UDP 53, xc xs TCP 1",
		"xs node TCP 9100, out node TCP 80, out node ICMP, node out UDP 54, node out TCP 80"},
	{"policies about nodes say nothing of pods", own("o", "{tier: security, priority: 1, subject: {nodes: {}}, policyTypes: [Ingress, Egress]}"), "xc xs TCP 1, out xs TCP 80, xs out UDP 9", "xc node TCP 80"},
	{"Log decides nothing", own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Log}, {action: Deny, protocols: [{udp: {}}]}]}"), "xc xs TCP 80", "xc xs UDP 80"},
	{"staged policies decide nothing", own("o", "{tier: before, staged: true, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny}]}") + own("d", "{tier: last, staged: true, priority: 1, subject: {namespaces: {}}, policyTypes: [Egress]}"), "xc xs TCP 80, xs out UDP 1", ""},
}

// TestSemantics: each line of the specifications, by the evaluator and by the compiled form.
func TestSemantics(t *testing.T) {
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			w, err := Parse("town.yaml", []byte(strings.Replace(town, "policies:\n", "policies:"+map[bool]string{true: " []"}[c.policies == ""]+"\n", 1)+c.policies))
			if err != nil {
				t.Fatal(err)
			}
			g := w.Compile(nil)
			for text, want := range map[string]bool{c.allowed: true, c.denied: false} {
				for _, q := range strings.Split(text, ",") {
					for family := 0; family < 2 && strings.TrimSpace(q) != ""; family++ {
						k := question(t, q, family)
						if k.Src.Is4() != k.Dst.Is4() {
							continue
						}
						a := w.Evaluate(k)
						if a.Allowed != want {
							t.Errorf("%s (%s): allowed %v: %v; %v", q, k, a.Allowed, a.Egress.Reason, a.Ingress.Reason)
						}
						if allowed, out, in := g.Judge(k); allowed != a.Allowed || out != a.Egress.Reason || in != a.Ingress.Reason {
							t.Errorf("%s (%s): compiled: %v: %v; %v, evaluated: %v; %v", q, k, allowed, out, in, a.Egress.Reason, a.Ingress.Reason)
						}
					}
				}
			}
		})
	}
}

// TestExplains: an answer names tier, policy and rule, and what would have to change.
func TestExplains(t *testing.T) {
	w, err := Parse("town.yaml", []byte(town+
		cnp("guard", "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{name: no-telnet, action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}]}")+
		np("web", "x", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}]}]}")+
		np("all", "x", "{podSelector: {}}")))
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[string][2]string{
		"yc xs TCP 23": {`denied by ClusterNetworkPolicy guard of tier Admin, rule ingress[0] "no-telnet"`, `change rule ingress[0] "no-telnet" of guard, or put a rule that accepts TCP 23 from pod y/client before it`},
		"xc xs TCP 80": {`allowed by NetworkPolicy x/web, rule ingress[0]`, ""},
		"yc xs TCP 80": {`denied: isolated by NetworkPolicy x/all, x/web, of which no rule allows it`, `allow TCP 80 from pod y/client in a rule for ingress of a NetworkPolicy that selects pod x/server: of x/all, x/web, or of one more`},
		"out ys UDP 1": {`allowed: no policy is about it`, ""},
	} {
		a := w.Evaluate(question(t, q, 0))
		if got := a.Ingress.Reason.String(); got != want[0] {
			t.Errorf("%s: %s, want %s", q, got, want[0])
		}
		if a.Ingress.Remedy != want[1] {
			t.Errorf("%s: remedy %s, want %s", q, a.Ingress.Remedy, want[1])
		}
	}
	asked := w.Evaluate(question(t, "yc xs TCP 80", 0)).Ingress.Asked
	if len(asked) != 2 || asked[0].Policy != "guard" || !asked[0].Peer || asked[0].Port || asked[1].Peer || !asked[1].Port {
		t.Errorf("asked: %+v", asked)
	}
}

// TestNotes: rules that log, in their order up to the one that decides, and what policies would do that are staged.
func TestNotes(t *testing.T) {
	w, err := Parse("town.yaml", []byte(town+
		own("watch", "{tier: security, priority: 1, subject: {namespaces: {}}, ingress: [{name: all, action: Log}, {action: Pass}]}")+
		own("deny", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Log, from: [{namespaces: {matchLabels: {team: red}}}]}, {action: Deny, protocols: [{udp: {}}]}, {action: Log, protocols: [{tcp: {destinationPort: {number: 81}}}]}]}")+
		own("try", "{tier: before, staged: true, priority: 5, subject: {namespaces: {}}, ingress: [{action: Log}, {action: Deny, protocols: [{tcp: {destinationPort: {range: {start: 80, end: 90}}}}]}, {action: Accept, protocols: [{tcp: {destinationPort: {number: 99}}}]}]}")+
		own("later", "{tier: last, staged: true, priority: 5, subject: {namespaces: {}}, policyTypes: [Ingress]}")+
		np("a", "y", "{podSelector: {}, ingress: [{ports: [{port: 8080}, {port: 80}]}]}")))
	if err != nil {
		t.Fatal(err)
	}
	g := w.Compile(nil)
	const all = `logged by Policy watch of tier security, rule ingress[0] "all"`
	for q, want := range map[string]string{
		"yc xs UDP 1":    all + "; logged by Policy deny of tier before, rule ingress[0]",
		"xc xs TCP 81":   all + "; logged by Policy deny of tier before, rule ingress[2]; would be denied by Policy try of tier before, rule ingress[1]",
		"xc xs TCP 99":   all + "; would be allowed by Policy try of tier before, rule ingress[2]",
		"xc xs TCP 7":    all + "; would be denied by Policy later of tier last, of which no rule allows it",
		"xc ys TCP 8080": all, // a pod that NetworkPolicy has decided about is none of a later tier's
		"xc ys TCP 80":   all + "; would be denied by Policy try of tier before, rule ingress[1]",
		"xc out TCP 80":  "",
	} {
		k := question(t, q, 0)
		a := w.Evaluate(k)
		var texts []string
		for _, n := range append(a.Egress.Notes, a.Ingress.Notes...) {
			texts = append(texts, n.String())
		}
		if got := strings.Join(texts, "; "); got != want {
			t.Errorf("%s: %s, want %s", q, got, want)
		}
		if got := append(g.Noted(Egress, k), g.Noted(Ingress, k)...); !slices.Equal(got, append(a.Egress.Notes, a.Ingress.Notes...)) {
			t.Errorf("%s: compiled: %v", q, got)
		}
	}
}

// TestOn: a node's own ports stay open beside the failsafe ones, and only its own view has lookups for it.
func TestOn(t *testing.T) {
	w, err := Parse("town.yaml", []byte(town+own("o", "{tier: security, priority: 1, subject: {nodes: {}}, policyTypes: [Ingress]}")))
	if err != nil {
		t.Fatal(err)
	}
	k := question(t, "out node UDP 4789", 0)
	for node, want := range map[string]bool{"alpha": true, "beta": false} {
		v := w.On(node, [2][]Port{Ingress: {{Protocol: UDP, First: 4789, Last: 4789}}})
		g := v.Compile(func(*Pod) bool { return false })
		if has := g.Sides[Ingress].Host >= 0; has != want {
			t.Errorf("%s: lookups for the node itself: %v", node, has)
		}
		if a := v.Evaluate(k); !a.Allowed || a.Ingress.Reason.Tier != Failsafe {
			t.Errorf("%s: %v", node, a.Ingress.Reason)
		}
	}
	if w.Evaluate(k).Allowed {
		t.Error("a view changed what it is of")
	}
}

// TestMistakes: each mistake of a file is named with its line, and nothing of the file is taken then.
func TestMistakes(t *testing.T) {
	for policies, want := range map[string]string{
		np("a", "x", "{podSelecter: {}}"):                                                                                                                                 "did you mean podSelector?",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}"):                                                                                  "79 is less than port 80",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: http, endPort: 79}]}]}"):                                                                                "needs a port that is a number",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: \"80\"}]}]}"):                                                                                           "a number goes without quotes",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: \"\"}]}]}"):                                                                                             "is not the name of a port",
		np("a", "\"\"", "{podSelector: {}}"):                                                                                                                              "is empty: write a namespace",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: []}]}]}"):                                                 "names no network",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}], protocols: []}]}"):                              "names no protocol",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: \"\"}]}]}"): "is not the name of a port",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{port: 0}]}]}"):                                                                                                "out of range",
		np("a", "x", "{podSelector: {}, ingress: [{from: [{}]}]}"):                                                                                                        "selects nothing",
		np("a", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}"):                                                            "make two of it",
		np("a", "x", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}"):                                                      "11.0.0.0/16 is not a part of 10.0.0.0/8",
		np("a", "x", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}"):                                                                               "is not a prefix",
		np("a", "x", "{podSelector: {}, policyTypes: [ingress]}"):                                                                                                         "write Ingress or Egress",
		np("a", "x", "{podSelector: {matchExpressions: [{key: a, operator: Near}]}}"):                                                                                     "operator \"Near\" is unknown",
		np("a", "x", "{podSelector: {matchExpressions: [{key: a, operator: In}]}}"):                                                                                       "In needs values",
		np("a", "x", "{podSelector: {}}") + np("a", "x", "{podSelector: {}}"):                                                                                             "policy x/a is there twice",
		cnp("c", "{tier: Middle, priority: 1, subject: {namespaces: {}}}"):                                                                                                "write Admin or Baseline",
		cnp("c", "{tier: Admin, subject: {namespaces: {}}}"):                                                                                                              "has no priority",
		cnp("c", "{tier: Admin, priority: 1001, subject: {namespaces: {}}}"):                                                                                              "out of range",
		cnp("c", "{tier: Admin, priority: 1, subject: {}}"):                                                                                                               "wants exactly one of namespaces, pods",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}"):                                           "action \"Allow\" is unknown",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: []}]}"):                                                            "has nobody in from",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{domainNames: [a]}]}]}"):                                             "unknown key",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{}]}]}"):                              "wants exactly one of tcp",
		"  - {apiVersion: networking.k8s.io/v2, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelector: {}}}\n":                                                     "are of no policy",
		"  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: a}, spec: {podSelector: {}}}\n":                                                "has no name",
		"  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}}\n":                                                                              "has no spec",
		np("a", "x", "{podSelector: {}}") + "pods: []\n":                                                                                                                  "written twice",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{nodes: {}}]}]}"):                                                 "unknown key",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}}"):                                                 "wants exactly one of namespaces, pods",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{icmp: {}}]}]}"):                      "unknown key",
		np("a", "x", "{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}"):                                                                                         "is not a protocol that rules know",
		own("o", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny}]}"):                                                                      "Admin and Baseline have ClusterNetworkPolicies",
		own("o", "{tier: nowhere, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny}]}"):                                                                    "is none of tiers",
		own("o", "{tier: before, subject: {namespaces: {}}, ingress: [{action: Deny}]}"):                                                                                  "has no priority",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}}"):                                                                                                "is about nothing",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}, nodes: {}}, ingress: [{action: Deny}]}"):                                                          "wants exactly one of",
		own("o", "{tier: before, priority: 1, subject: {networks: [10.0.0.0/8]}, ingress: [{action: Deny}]}"):                                                             "unknown key",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Drop}]}"):                                                                     "action \"Drop\" is unknown",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: []}]}"):                                                           "has nobody in from",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{networkSets: [homes]}]}]}"):                                     "\"homes\" is none of networkSets",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{networkSets: []}]}]}"):                                          "names no set",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, protocols: []}]}"):                                                      "names no protocol",
		own("o", "{tier: before, priority: 1, subject: {serviceAccounts: {namespaceSelector: {}, names: []}}, ingress: [{action: Deny}]}"):                                "names none",
		own("o", "{tier: before, priority: 1, subject: {serviceAccounts: {names: [a]}}, ingress: [{action: Deny}]}"):                                                      "has no namespaceSelector",
		own("o", "{tier: before, priority: 1, subject: {namespaces: {}}, policyTypes: [Both]}"):                                                                           "write Ingress or Egress",
		own("o", "{tier: before, priority: 1, staged: 1, subject: {namespaces: {}}, ingress: [{action: Deny}]}"):                                                          "true or false",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Log, from: [{namespaces: {}}]}]}"):                                             "action \"Log\" is unknown",
		cnp("c", "{tier: security, priority: 1, subject: {namespaces: {}}}"):                                                                                              "write Admin or Baseline",
		cnp("c", "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8, \"::ffff:1.2.3.4/96\"]}]}]}"):                "is not a prefix",
	} {
		w, err := Parse("town.yaml", []byte(town+policies))
		if err == nil || w != nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "town.yaml") {
			t.Errorf("%s: %v, wants %q", policies, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "the file is empty",
		"pods: [{name: a, addresses: [10.0.0.1]}, {name: b, addresses: [10.0.0.1]}]":          "pod default/a and pod default/b both have address 10.0.0.1",
		"pods: [{name: a, addresses: [10.0.0.256]}]":                                          "is not an address",
		"pods: [{name: a, ports: [{name: toolongforaname0, port: 1}]}]":                       "is not that of a port",
		"pods: [{name: a, namespace: \"\"}]":                                                  "is empty: write a namespace",
		"pods: [{name: a}, {name: a}]":                                                        "pod default/a is there twice",
		"namespaces: [{name: a}, {name: a}]":                                                  "namespace a is there twice",
		"pods: [{name: a, labels: {app: 1}}]":                                                 "wants a text",
		"pods: [{name: a, serviceAccount: \"\"}]":                                             "is empty: write a service account",
		"tiers: [{name: a}]":                                                                  "has no order",
		"tiers: [{name: Admin, order: 7}]":                                                    "tier Admin is there already",
		"tiers: [{name: a, order: 2000}]":                                                     "tier NetworkPolicy has order 2000 already",
		"tiers: [{name: a, order: 7, default: Accept}]":                                       "is no default of a tier",
		"tiers: [{name: a, order: 7}, {name: b, order: 7}]":                                   "tier a has order 7 already",
		"networkSets: [{name: a, networks: []}]":                                              "names no network",
		"networkSets: [{name: a, networks: [10.0.0.0/8]}, {name: a, networks: [10.0.0.0/8]}]": "set a is there twice",
	} {
		if _, err := Parse("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, wants %q", text, err, want)
		}
	}
}

// FuzzParse: nothing that a file holds breaks the reader, and what it takes compiles.
func FuzzParse(f *testing.F) {
	for _, c := range table {
		f.Add([]byte(town + c.policies))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if w, err := Parse("f", data); err == nil {
			w.Compile(nil)
		}
	})
}
