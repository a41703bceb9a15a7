package daemon

import (
	"context"

	"weft/api"
	"weft/control/mesh"
)

var _ api.Mesher = (*Daemon)(nil)

// Mesh says what this node knows of the mesh that it is in.
func (d *Daemon) Mesh() api.Mesh {
	src, ok := d.source.(*mesh.Source)
	if !ok {
		return api.Mesh{}
	}
	m := api.Mesh{Enabled: true, Node: d.cfg.Node.Name, Expect: d.cfg.Control.Mesh.Expect}
	s, err := src.Status()
	if err != nil {
		m.Reason = err.Error()
		return m
	}
	m.Address, m.Known, m.Live, m.Waiting, m.Reason = s.Address, s.Known, s.Live, s.Waiting, s.Reason
	m.TxBytes, m.RxBytes = s.Sent, s.Received
	m.RefusedPassword, m.RefusedClock = s.Refused[0], s.Refused[1]
	for _, n := range s.Nodes {
		told := api.MeshNode{Name: n.Name, ID: n.ID, Self: n.Self, Live: n.Live, Address: n.Address, Record: n.Seq, Prefixes: n.Prefixes, Claims: n.Claims}
		if !n.Live && !n.Silent.IsZero() {
			told.Silent = &n.Silent
		}
		m.Nodes = append(m.Nodes, told)
	}
	return m
}

// Forget frees on all nodes what a node claims that is not heard any more.
func (d *Daemon) Forget(_ context.Context, q api.ForgetRequest) error {
	src, ok := d.source.(*mesh.Source)
	if !ok {
		return &api.Error{Code: api.CodeInvalid, Text: mesh.ErrNoMesh.Error() + ": control.kind is " + d.cfg.Control.Kind}
	}
	if err := src.Forget(q.Node); err != nil {
		return &api.Error{Code: api.CodeInvalid, Text: err.Error()}
	}
	return nil
}
