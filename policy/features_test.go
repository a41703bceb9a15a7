package policy

import (
	"slices"
	"testing"
)

// features are the lines of the checklist of NetworkPolicy's semantics (the API's documentation, Kubernetes' own e2e suite), each with what tests it
// here: lines of the table by their names, and tests of other rooms in words.
var features = []struct {
	line      string
	table     []string // of TestSemantics
	elsewhere string
}{
	{"a pod that no policy selects in a direction is open in it; selected, the union of rules decides, in any order", []string{"no policy: open", "selected: only what rules allow; others stay open", "policies add up, in any order"}, ""},
	{"a connection needs egress of its source and ingress of its destination; answers belong to it", []string{"both ends have to agree"},
		"answers and ICMP errors: node/policies TestChangesBite and TestManyChanges; a server whose egress is denied answers: TestManyChanges"},
	{"policyTypes", []string{"without policyTypes ingress always, egress with rules only", "without policyTypes and without egress rules egress stays open",
		"policyTypes Egress alone denies all egress, and does not isolate ingress", "rules of a direction that policyTypes leaves out count for nothing"}, ""},
	{"no rules deny all, an empty rule allows all", []string{"an empty list of rules denies all", "an empty rule allows all"}, ""},
	{"an empty podSelector is all pods of the policy's namespace", []string{"an empty podSelector is the policy's namespace and no other"}, ""},
	{"peers", []string{"podSelector alone is of the own namespace", "namespaceSelector alone is all pods of it", "both in one are both", "two are either",
		"an empty namespaceSelector is all pods, and nobody outside", "an empty from is everybody"}, ""},
	{"matchExpressions, kubernetes.io/metadata.name", []string{"In", "NotIn matches an absent key", "Exists", "DoesNotExist matches an absent key", "a namespace has its name as a label"}, ""},
	{"ports", []string{"a protocol left out is TCP", "a port left out is the whole protocol", "a named port is the target's, and each target's own", "a named port is of its protocol", "endPort",
		"a named port of egress is the destination's"}, ""},
	{"ipBlock", []string{"ipBlock without its exceptions", "one rule's exception may be another's prefix", "the family of a block is its own"}, "not combinable with selectors: TestMistakes"},
	{"a rule of one protocol leaves the others closed", []string{"UDP alone leaves TCP blocked, and SCTP alone both"}, "by packets of TCP, UDP, SCTP and another protocol: policy/nft TestPackets"},
	{"nodes reach their own pods; pods of the node's network are not selected", nil, "node/policies TestHosts; internal/e2e TestPolicy"},
	{"dynamics: policies, labels, addresses come, change and go; connections that stand", nil, "node/policies TestChangesBite, TestTakenUp, TestManyChanges, TestNeverOpen; internal/e2e TestPolicy; all of cyclonus' cases: scripts/policy-oracle"},
	{"from the first packet", nil, "internal/e2e TestPolicy: a pod of which nothing is known reaches nobody"},
	{"one node and two, behind DNAT, every mode", nil, "internal/e2e TestPolicy, in every mode in the long test"},
	{"what is wrong opens nothing", nil, "TestMistakes; node/policies TestNeverOpen; an operator that is unknown selects nothing: TestMistakes"},
	{"ClusterNetworkPolicy", []string{"Admin's Accept is final", "lower priorities go first", "the first rule that matches decides", "Pass leaves the tier for the next",
		"a pod that a NetworkPolicy isolates is none of Baseline's", "Baseline has the last word", "egress to nodes and networks", "a named port of any protocol"}, ""},
}

// TestFeatures: every line is tested, by a test that is there.
func TestFeatures(t *testing.T) {
	for _, f := range features {
		if len(f.table) == 0 && f.elsewhere == "" {
			t.Errorf("nothing tests: %s", f.line)
		}
		for _, name := range f.table {
			if !slices.ContainsFunc(table, func(s semantics) bool { return s.name == name }) {
				t.Errorf("%s: the table has no line %q", f.line, name)
			}
		}
	}
}
