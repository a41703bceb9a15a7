package e2e

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"weft/catalog/mode"
	"weft/internal/nettest"
)

// TestOuterHeaderIsNeverFragmented captures what goes from node to node, in every mode, sealed too: DF is set in every outer IPv4 header,
// and nothing comes in pieces, as docs/wire.md has it. A handshake is no exception.
func TestOuterHeaderIsNeverFragmented(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range mode.All() {
		for _, seal := range []bool{false, true} {
			if m.Wire == mode.Direct || seal && !m.Seals() {
				continue
			}
			t.Run(fmt.Sprintf("%s/sealed=%v", m.Name, seal), func(t *testing.T) {
				t.Parallel()
				c := prepare(t, m.Name, 4, nettest.ClusterOptions{Bridge: true})
				port := m.Port
				if seal {
					port = 8473
					password := filepath.Join(c.dir, "psk")
					c.writeFile(password, "a password of this test\n")
					c.encryption = func(*nettest.ClusterNode) string { return "encryption: {cipher: auto, psk_file: " + password + "}" }
				}
				frames := capture(t, c.Fabric, "port1", 64)
				c.launch()
				a, b := c.Nodes[0], c.Nodes[1]
				for _, size := range []string{"8", "1200"} {
					for _, to := range b.PodAddrs {
						c.eventually("a packet of "+size+" bytes arrives", func() error { return ping(a.Pod, to, "-s", size) })
					}
				}
				if err := bulk(a.Pod, b.Pod, b.PodAddrs[0], 1<<20); err != nil {
					t.Error(err)
				}
				from := map[byte]int{} // by the last byte of the source
				for _, f := range frames() {
					if len(f) < 42 || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IP || f[14]>>4 != 4 {
						continue
					}
					ip := f[14:]
					fragment := binary.BigEndian.Uint16(ip[6:])
					udp := ip[int(ip[0]&15)*4:]
					tunnel := ip[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(udp[2:]) == port
					if !tunnel && fragment&0x3fff == 0 {
						continue // not of the tunnel, and no fragment of anything
					}
					if from[ip[15]]++; fragment != 0x4000 || ip[8] != 64 {
						t.Fatalf("an outer header with flags and fragment offset %#04x, TTL %d: % x", fragment, ip[8], ip)
					}
				}
				if from[1] < 10 || from[2] < 10 {
					t.Errorf("packets of the tunnel seen by source: %v: nothing was tested", from)
				}
			})
		}
	}
}
