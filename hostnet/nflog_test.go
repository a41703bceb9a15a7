package hostnet

import "testing"

func FuzzReadLogged(f *testing.F) {
	f.Add([]byte{2, 0, 0, 87, 8, 0, 1, 0, 8, 0, 2, 0, 9, 0, 10, 0, 'n', 'o', 't', 'e', 0, 0, 0, 0, 8, 0, 9, 0, 0x45, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := readLogged(b); ok && len(p.Packet) == 0 {
			t.Error("a packet without a byte")
		}
	})
}
