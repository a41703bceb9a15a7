package daemon

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"weft/api"
	"weft/control"
	"weft/insight/trace"
	"weft/internal/config"
	"weft/node/policies"
	"weft/policy"
	"weft/reach/bgp"
	"weft/reach/link"
)

var _ api.Policer = (*Daemon)(nil)

// Policies tells the node's network policies and what they denied.
func (d *Daemon) Policies() api.Policies {
	if d.policies == nil {
		return api.Policies{}
	}
	s := d.policies.Status()
	p := api.Policies{Enabled: true, Source: d.cfg.Policy.Source, File: s.Source, Pods: s.Pods, Problem: s.Problem, Odd: s.Odd, Since: s.Since, Ended: s.Ended}
	if s.World != nil {
		p.Policies = s.World.List()
	}
	for _, c := range s.Counts {
		if c.What == policies.Denied {
			p.Denied = append(p.Denied, api.PolicyDenied{Tier: c.Tier, Policy: c.Policy, Rule: c.Rule, Packets: c.Packets})
		} else {
			p.Counted = append(p.Counted, api.PolicyCounted{What: c.What, Tier: c.Tier, Policy: c.Policy, Rule: c.Rule, Packets: c.Packets})
		}
	}
	return p
}

// policiesOn says what this node's policies say of a packet that it forwards, or that is its own.
func (d *Daemon) policiesOn(q api.PathQuestion, node bool) (list []trace.PolicyVerdict) {
	ends, err := d.policies.Enforced(policy.Traffic{Src: q.Src, Dst: q.Dst, Protocol: policy.Protocol(q.Protocol), Port: q.DPort})
	if err != nil {
		return []trace.PolicyVerdict{{Text: err.Error()}}
	}
	for _, e := range ends {
		if node == (e.Node != "") {
			list = append(list, trace.PolicyVerdict{Denied: !e.Allowed, Text: fmt.Sprintf("%s of %s: %s", e.Direction, e.End(), e.Text), Remedy: e.Remedy})
		}
	}
	return list
}

// open are the ports of a node's own that no policy may close; ways are those by which it takes packets, servers those of its control plane.
func open(cfg *config.Config, ways []control.Way, servers func(*config.Config) []string) (ports [2][]policy.Port) {
	add := func(d policy.Direction, p policy.Protocol, number uint16) {
		if number != 0 {
			ports[d] = append(ports[d], policy.Port{Protocol: p, First: number, Last: number})
		}
	}
	both := []policy.Direction{policy.Egress, policy.Ingress}
	for _, d := range both {
		add(d, policy.UDP, cfg.Network.Port)
		if len(cfg.Modes) > 1 { // else nobody probes, or answers
			add(d, policy.UDP, link.Port)
		}
		if cfg.Encryption.Cipher != config.CipherNone {
			add(d, policy.UDP, cfg.Encryption.Port)
		}
		for _, w := range ways {
			add(d, policy.UDP, w.Port)
		}
		if cfg.Control.Kind == "mesh" {
			add(d, policy.UDP, cfg.Control.Mesh.Port)
			add(d, policy.TCP, cfg.Control.Mesh.Port)
		}
	}
	if cfg.BGP.AS != 0 {
		add(policy.Egress, policy.TCP, bgp.Port)
		add(policy.Ingress, policy.TCP, bgp.Port)
		if slices.ContainsFunc(cfg.BGP.Peers, func(p config.BGPPeer) bool { return p.BFD }) {
			add(policy.Egress, policy.UDP, bgp.BFDPort)
			add(policy.Ingress, policy.UDP, bgp.BFDPort)
		}
	}
	add(policy.Ingress, policy.TCP, portOf(cfg.API.Metrics))
	if servers != nil {
		for _, at := range servers(cfg) {
			add(policy.Egress, policy.TCP, portOf(at))
		}
	}
	return ports
}

// portOf reads the port of HOST:PORT; 0 = there is none.
func portOf(address string) uint16 {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(text, 10, 16)
	return uint16(n)
}

// Explain says what the policies in force say about connections.
func (d *Daemon) Explain(src, dst, port string) ([]policy.Explained, error) {
	if d.policies == nil {
		return nil, errors.New("network policy is off on this node: set policy.enabled, or name a file with --file")
	}
	return d.policies.Explain(src, dst, port)
}
