package policy

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

// TestObject: what an API server keeps is read as a file's policies are; what cannot be understood stands for a denial.
func TestObject(t *testing.T) {
	for _, c := range []struct{ name, kind, spec, wrong, subject string }{
		{"good", networkPolicy, `{"podSelector":{"matchLabels":{"a":"b"}},"ingress":[{"ports":[{"port":80,"protocol":"TCP"}]}]}`, "", "pods with a=b of namespace x"},
		{"a new field", networkPolicy, `{"podSelector":{"matchLabels":{"a":"b"}},"later":1}`, "spec.later: unknown key", "pods with a=b of namespace x"},
		{"a new selector", networkPolicy, `{"podSelector":{"later":{}}}`, "spec.podSelector.later: unknown key", "all pods of namespace x"},
		{"nothing", networkPolicy, ``, "has no spec", "all pods of namespace x"},
		{"null", networkPolicy, `null`, "spec", "all pods of namespace x"},
		{"a list", networkPolicy, `[1]`, "spec", "all pods of namespace x"},
		{"a subject", clusterPolicy, `{"tier":"Later","priority":3,"subject":{"namespaces":{"matchLabels":{"a":"b"}}}}`, "is not a tier", "all pods of namespaces with a=b"},
		{"no subject", clusterPolicy, `{"tier":"Baseline","priority":3}`, "has no subject", "all pods of all namespaces"},
	} {
		o := Object{APIVersion: networkPolicyAPI, Kind: c.kind, Namespace: "x", Name: "p", Spec: json.RawMessage(c.spec)}
		if c.kind == clusterPolicy {
			o.APIVersion, o.Namespace = clusterPolicyAPIs[0], ""
		}
		p, err := o.Policy()
		if (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v, want %q", c.name, err, c.wrong)
		}
		if got := p.Subject.String(); got != c.subject {
			t.Errorf("%s is about %s, want %s", c.name, got, c.subject)
		}
		if err != nil && c.kind == networkPolicy && p.Isolates != [2]bool{true, true} {
			t.Errorf("%s isolates %v", c.name, p.Isolates)
		}
	}
}

// FuzzObject: an object that cannot be understood is named, and denies everything to whom it is about.
func FuzzObject(f *testing.F) {
	f.Add("networking.k8s.io/v1", "NetworkPolicy", "x", `{"podSelector":{}}`)
	f.Add("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", "", `{"tier":"Admin","priority":1,"subject":{"namespaces":{}}}`)
	f.Add("networking.k8s.io/v1", "NetworkPolicy", "x", `{"podSelector":{"matchLabels":{"a":"b"}},"ingress":null}`)
	f.Fuzz(func(t *testing.T, api, kind, namespace, spec string) {
		p, err := Object{APIVersion: api, Kind: kind, Namespace: namespace, Name: "p", Spec: json.RawMessage(spec)}.Policy()
		if err == nil {
			return
		}
		// What denies has to be one that a World takes and that denies a pod that it is about.
		pod := Pod{Namespace: namespace, Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
		w, err := NewWorld(nil, []Pod{pod}, nil, []Policy{p})
		if err != nil {
			t.Fatal(err)
		}
		all := w.Policies()[0]
		if !w.Selects(all, w.Pods()[0]) {
			return
		}
		for _, q := range []Traffic{{Src: netip.MustParseAddr("192.0.2.1"), Dst: pod.Addresses[0]}, {Dst: netip.MustParseAddr("192.0.2.1"), Src: pod.Addresses[0]}} {
			for _, protocol := range []Protocol{TCP, UDP, SCTP, 1} {
				q.Protocol, q.Port = protocol, 80
				if w.Evaluate(q).Allowed {
					t.Fatalf("%s of %s %s %q lets %v through", kind, api, namespace, spec, q)
				}
			}
		}
	})
}
