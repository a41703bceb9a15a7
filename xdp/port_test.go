package xdp

import (
	"testing"

	"weft/packet"
	"weft/packet/packettest"
)

func TestInsideConforms(t *testing.T) {
	for name, attach := range map[string]Attach{"native": Native, "generic": Generic} {
		t.Run(name, func(t *testing.T) {
			packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
				u := newUnderlay(t)
				c := testConfig()
				c.Attach = attach
				port := openIn(t, u.a, OpenInside, c)
				far := sniff(t, u.a, "weft0", true)
				return port, packettest.Far{MTU: testMTU, Write: far.write, Read: far.read}
			})
		})
	}
}

func TestOutsideConforms(t *testing.T) {
	for name, attach := range map[string]Attach{"native": Native, "generic": Generic} {
		for i, family := range []string{"v4", "v6"} {
			t.Run(name+"/"+family, func(t *testing.T) {
				packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
					u := newUnderlay(t)
					c := testConfig()
					c.Attach = attach
					port := openIn(t, u.a, OpenOutside, c)
					resolve(t, port, hopTo(addrsB[i]))
					far := datagrams(t, u.b, addrsB[i], testPort)
					return port, packettest.Far{
						MTU: 1500 - 48, Hop: hopTo(addrsB[i]), From: addrsB[i],
						Write: func(p []byte) error {
							_, err := far.WriteToUDPAddrPort(p, hopTo(addrsA[i]).Path.Dst)
							return err
						},
						Read: func() ([]byte, error) {
							p, _, err := readUDP(far)
							return p, err
						},
					}
				})
			})
		}
	}
}
