package daemon

import (
	"slices"
	"testing"

	"weft/internal/config"
	"weft/policy"
)

// TestOpen: what a node needs to stay part of its cluster stays open on it: where the control plane is asked, whatever port that has.
func TestOpen(t *testing.T) {
	cfg := &config.Config{}
	ports := open(cfg, nil, func(*config.Config) []string { return []string{"192.0.2.1:8443", "[2001:db8::1]:16443", "nowhere"} })
	for _, want := range []uint16{8443, 16443} {
		if !slices.Contains(ports[policy.Egress], policy.Port{Protocol: policy.TCP, First: want, Last: want}) {
			t.Errorf("port %d of the control plane is not open: %v", want, ports[policy.Egress])
		}
	}
	if n := len(open(cfg, nil, nil)[policy.Egress]); n != len(ports[policy.Egress])-2 {
		t.Errorf("%d ports without a control plane, %v with", n, ports[policy.Egress])
	}
}
