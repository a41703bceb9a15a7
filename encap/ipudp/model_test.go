package ipudp_test

import (
	"testing"

	"weft/packet"
	"weft/packet/packettest"
)

func TestStageModel(t *testing.T) {
	packettest.Sequences(t, 200_000, packettest.StageSequence(newStage, hop, packet.IP))
}

func FuzzStageModel(f *testing.F) {
	packettest.FuzzSequences(f, packettest.StageSequence(newStage, hop, packet.IP))
}
