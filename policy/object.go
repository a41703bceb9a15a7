package policy

import (
	"encoding/json"
	"errors"
	"fmt"

	"weft/internal/config/strict"
)

// Object is a policy as an API server keeps it.
type Object struct {
	APIVersion, Kind string
	Namespace, Name  string          // Namespace is "" of a ClusterNetworkPolicy
	Spec             json.RawMessage // JSON
}

// Policy reads the object. One that cannot be understood isolates what it selects: the error says why, and the Policy that comes with it denies
// everything to the pods that the object is about, and to more than those where even that cannot be told.
func (o Object) Policy() (Policy, error) {
	what := fmt.Sprintf("%s %s", o.Kind, (&Policy{Namespace: o.Namespace, Name: o.Name}).String())
	meta := map[string]any{"name": o.Name}
	if o.Namespace != "" {
		meta["namespace"] = o.Namespace
	}
	body := map[string]any{"apiVersion": o.APIVersion, "kind": o.Kind, "metadata": meta}
	if len(o.Spec) > 0 {
		body["spec"] = o.Spec
	}
	data, err := json.Marshal(body)
	var doc *strict.Document
	var p Policy
	if err == nil {
		doc = strict.Parse(what, data) // JSON is YAML
		p = onePolicy(doc.Root(), ownObjects{})
		if err = doc.Err(); err == nil {
			return p, nil
		}
	}
	var list strict.Errors
	if errors.As(err, &list) { // all of it is in one line
		var errs []error
		for _, e := range list {
			errs = append(errs, fmt.Errorf("%s: %s", e.Key, e.Text))
		}
		err = errors.Join(errs...)
	}
	return o.standIn(), fmt.Errorf("%s cannot be understood, all that it is about is denied everything: %w", what, err)
}

// standIn is a policy that denies all to whom the object is about.
func (o Object) standIn() Policy {
	var spec struct {
		Tier        string          `json:"tier"`
		Priority    json.Number     `json:"priority"`
		PodSelector json.RawMessage `json:"podSelector"`
		Subject     json.RawMessage `json:"subject"`
	}
	_ = json.Unmarshal(o.Spec, &spec) // what it does not say is taken for all
	p := Policy{Namespace: o.Namespace, Name: o.Name}
	if o.Kind == networkPolicy {
		p.Tier, p.Isolates = Namespaced, [2]bool{true, true}
		p.Subject = Peer{Namespace: o.Namespace}
		if s, ok := alone(spec.PodSelector, selector); ok {
			p.Subject.Pods = s
		}
		return p
	}
	p.Tier = Admin
	if spec.Tier == Baseline.String() {
		p.Tier = Baseline
	}
	if n, err := spec.Priority.Int64(); err == nil && n >= 0 && n <= 1000 {
		p.Priority = int(n)
	}
	if s, ok := alone(spec.Subject, func(v strict.Value) Peer {
		if f := one(v, "subject", v, "namespaces", "pods"); f != nil {
			return clusterPods(f)
		}
		return Peer{}
	}); ok {
		p.Subject = s
	}
	for _, d := range directions {
		p.Rules[d] = []Rule{{Name: "not understood", Action: Deny}}
	}
	return p
}

// alone reads a part of an object by itself, where it can be read.
func alone[T any](data json.RawMessage, read func(strict.Value) T) (t T, ok bool) {
	if len(data) == 0 {
		return t, false
	}
	doc := strict.Parse("", data)
	t = read(doc.Root())
	return t, doc.Err() == nil && doc.Root().IsMapping()
}
