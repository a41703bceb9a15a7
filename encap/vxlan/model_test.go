package vxlan_test

import (
	"testing"

	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

// configs are the stages as modes use them.
var configs = map[string]struct {
	config vxlan.Config
	rco    bool // the peer announced it
}{
	"IP":       {vxlan.Config{VNI: vni, MAC: ownMAC, MTU: 1450}, false},
	"RCO":      {vxlan.Config{VNI: vni, MAC: ownMAC, RCO: true}, true},
	"RCO half": {vxlan.Config{VNI: vni, MAC: ownMAC, RCO: true}, false},
	"Ethernet": {vxlan.Config{VNI: vni, Inner: packet.Ethernet, MTU: 1450}, false},
}

func sequenceOf(name string) packettest.Play {
	c := configs[name]
	hop := *loop
	hop.Peer.RCO = c.rco
	return packettest.StageSequence(func() packet.Stage { return vxlan.New(c.config) }, &hop, c.config.Inner)
}

func TestStageModel(t *testing.T) {
	for name := range configs {
		t.Run(name, func(t *testing.T) { packettest.Sequences(t, 200_000, sequenceOf(name)) })
	}
}

func FuzzStageModel(f *testing.F) {
	packettest.FuzzSequences(f, func(t *packettest.Tape) error {
		return sequenceOf(packettest.Pick(t, "IP", "RCO", "RCO half", "Ethernet"))(t)
	})
}
