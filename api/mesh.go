package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"
)

// Mesh is what a node knows of the mesh that it is in.
type Mesh struct {
	Enabled bool           `json:"enabled"`
	Node    string         `json:"node"`    // this one
	Address netip.AddrPort `json:"address"` // where it hears the others; "" = nowhere
	Known   int            `json:"known"`   // nodes, this one among them
	Live    int            `json:"live"`    // those that are heard, this one among them
	Expect  int            `json:"expect"`  // control.mesh.expect
	Waiting string         `json:"waiting"` // why this node has no prefix yet, "" = it has
	Reason  string         `json:"reason"`  // why it is not in the mesh, "" = it is
	Nodes   []MeshNode     `json:"nodes"`   // by name

	RefusedPassword uint64 `json:"refused_password"` // packets and calls of those with another password
	RefusedClock    uint64 `json:"refused_clock"`    // likewise, with a clock that is wrong
	TxBytes         uint64 `json:"tx_bytes"`         // to other nodes, sealed, without the headers of IP, UDP and TCP
	RxBytes         uint64 `json:"rx_bytes"`         // from others
}

// MeshNode is what is known of one node of a mesh.
type MeshNode struct {
	Name     string         `json:"name"`
	ID       string         `json:"id"` // its identity
	Self     bool           `json:"self"`
	Live     bool           `json:"live"`
	Silent   *time.Time     `json:"silent,omitempty"` // since when it is not heard
	Address  netip.AddrPort `json:"address"`
	Record   uint64         `json:"record"`   // the number of what it said last
	Prefixes []netip.Prefix `json:"prefixes"` // in force
	Claims   []netip.Prefix `json:"claims"`   // held out, not in force yet
}

// ForgetRequest names a node that is not heard any more.
type ForgetRequest struct {
	Node string `json:"node"`
}

// Mesher is a Daemon that may be one of a mesh.
type Mesher interface {
	Mesh() Mesh
	Forget(context.Context, ForgetRequest) error
}

func handleMesh(mux *http.ServeMux, m Mesher) {
	mux.HandleFunc("GET /v1/mesh", func(w http.ResponseWriter, _ *http.Request) {
		s := m.Mesh()
		s.Nodes = list(s.Nodes)
		for i := range s.Nodes {
			n := &s.Nodes[i]
			n.Prefixes, n.Claims = list(n.Prefixes), list(n.Claims)
		}
		reply(w, s)
	})
	mux.HandleFunc("POST /v1/mesh/forget", answer(done(m.Forget)))
}

// Mesh asks what the node knows of the mesh that it is in.
func (c *Client) Mesh(ctx context.Context) (m Mesh, err error) { return m, c.get(ctx, "mesh", &m) }

// Forget frees on all nodes what a node claims that is not heard any more.
func (c *Client) Forget(ctx context.Context, r ForgetRequest) error {
	return c.post(ctx, "mesh/forget", r, &struct{}{})
}
