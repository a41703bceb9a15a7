package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"weft/policy"
)

// Policies are the network policies of a node.
type Policies struct {
	Enabled bool      `json:"enabled"`
	Source  string    `json:"source"`  // file, kubernetes or etcd
	File    string    `json:"file"`    // which: a path, or what the source is called
	Problem string    `json:"problem"` // why what the source says is not in force, "" where it is
	Odd     []string  `json:"odd"`     // objects that cannot be understood, and what is denied for that
	Since   time.Time `json:"since"`   // when what is in force came to be so; zero = nothing is
	Pods    int       `json:"pods"`    // that the source knows

	Policies []policy.Listed `json:"policies"` // in the order in which they are asked
	Denied   []PolicyDenied  `json:"denied"`   // since the daemon began
	Counted  []PolicyCounted `json:"counted"`  // likewise: packets that are none of Denied
	Ended    uint64          `json:"ended"`    // likewise: connections that stood and that a change of policies denied
}

// PolicyCounted is how many packets a rule allowed or logged, or a staged policy would have denied or allowed. Answers are not counted.
type PolicyCounted struct {
	What    string `json:"what"` // allowed, logged, would-deny, would-allow
	Tier    string `json:"tier"`
	Policy  string `json:"policy"`
	Rule    string `json:"rule"`
	Packets uint64 `json:"packets"`
}

// PolicyDenied is how many packets this node denied, and for what.
type PolicyDenied struct {
	Tier    string `json:"tier"`   // or "unknown": of pods that the source does not know; "ended": answers of connections that a change has denied
	Policy  string `json:"policy"` // where no rule matched, all that isolate the pod
	Rule    string `json:"rule"`
	Packets uint64 `json:"packets"`
}

// Policer is a Daemon that knows network policies.
type Policer interface {
	Policies() Policies
	Explain(src, dst, port string) ([]policy.Explained, error)
}

func handlePolicies(mux *http.ServeMux, p Policer) {
	mux.HandleFunc("GET /v1/policies", func(w http.ResponseWriter, _ *http.Request) {
		all := p.Policies()
		all.Policies, all.Denied, all.Counted, all.Odd = list(all.Policies), list(all.Denied), list(all.Counted), list(all.Odd)
		reply(w, all)
	})
	mux.HandleFunc("GET /v1/policies/explain", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		answers, err := p.Explain(q.Get("src"), q.Get("dst"), q.Get("port"))
		if err != nil {
			send(w, http.StatusBadRequest, failure{Error: err.Error()})
			return
		}
		reply(w, list(answers))
	})
}

// Policies asks for the node's network policies.
func (c *Client) Policies(ctx context.Context) (p Policies, err error) {
	return p, c.get(ctx, "policies", &p)
}

// Explain asks what the policies in force say about connections; see policy.World.Explain.
func (c *Client) Explain(ctx context.Context, src, dst, port string) (e []policy.Explained, err error) {
	return e, c.get(ctx, "policies/explain?"+url.Values{"src": {src}, "dst": {dst}, "port": {port}}.Encode(), &e)
}
