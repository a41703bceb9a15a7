package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"weft/internal/nettest"
)

// TestCapture: tcpdump reads what `weft capture` writes of a ping, on both sides, sealed or not; and what died has its reason.
func TestCapture(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	for _, tool := range []string{"ping", "tcpdump", "tshark"} {
		nettest.RequireTool(t, tool)
	}
	for _, contender := range []string{"tun", "tun-gso", "tap", "xdp", "tun-gso+aes-256-gcm"} {
		t.Run(contender, func(t *testing.T) {
			t.Parallel()
			mode, cipher, sealed := strings.Cut(contender, "+")
			c := prepare(t, mode, 4, nettest.ClusterOptions{Bridge: true})
			if sealed {
				c.password(cipher)
			}
			c.launch()
			a, b := c.Nodes[0], c.Nodes[1]
			var about struct{ Port uint16 }
			if err := c.ask(a, &about, "status"); err != nil {
				t.Fatal(err)
			}
			file := c.path(a, "capture.pcapng")
			writer, err := a.NS.Start(weft, "capture", "--socket", c.path(a, "sock"), "-w", file, "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			defer writer.Kill()
			c.eventually("the capture begins", func() error { _, err := os.Stat(file); return err })
			wire := capture(t, c.Fabric, "port1", 2000)
			if err := ping(a.Pod, b.PodAddrs[0]); err != nil {
				t.Fatal(err)
			}
			a.NS.MustRun(t, "ip", "route", "add", "10.244.99.0/24", "dev", "weft0") // that no node owns: weft drops what is sent there
			a.NS.Run("ping", "-n", "-c", "1", "-W", "1", "10.244.99.1")             // in vain
			writer.Signal(syscall.SIGINT)
			<-writer.Done()
			real := wire()
			var summary struct{ Frames, Lost int }
			if err := json.Unmarshal([]byte(writer.Output()), &summary); err != nil || summary.Lost != 0 {
				t.Fatalf("it ended with %q: %v", writer.Output(), err)
			}
			read := func(tool string, args ...string) string {
				out, err := exec.Command(tool, append([]string{"-n", "-r", file}, args...)...).Output()
				if err != nil {
					t.Fatalf("%s %q: %v", tool, args, err)
				}
				return string(out)
			}
			if n := strings.Count(read("tshark", "-T", "fields", "-e", "frame.number"), "\n"); n != summary.Frames {
				t.Errorf("tshark reads %d packets of %d", n, summary.Frames)
			}
			inner := read("tcpdump", fmt.Sprintf("icmp and host %s and host %s", a.PodAddrs[0], b.PodAddrs[0]))
			if !strings.Contains(inner, "echo request") || !strings.Contains(inner, "echo reply") {
				t.Errorf("inside, no ping in\n%s", inner)
			}
			outer := read("tcpdump", "-v", fmt.Sprintf("udp and dst port %d", about.Port))
			if !strings.Contains(outer, a.Underlay[0].String()+".") || !strings.Contains(outer, "> "+b.Underlay[0].String()) || !strings.Contains(outer, "> "+a.Underlay[0].String()) {
				t.Errorf("outside, no datagrams of both ways in\n%s", outer)
			}
			outside(t, file, a, pastKernel(mode), real)
			if clear := strings.Contains(outer, "echo request"); clear == sealed {
				t.Errorf("outside, a ping in clear: %v\n%s", clear, outer)
			}
			if mode != "tap" { // in which nobody answers for the address
				if drops := read("tshark", "-T", "fields", "-e", "frame.comment", "-Y", "frame.comment"); !strings.Contains(drops, "drop no-route at route of lane out/") {
					t.Errorf("comments: %q", drops)
				}
			}
		})
	}
}

// outside holds the outer headers of a capture of node n to the frames that were on the wire: source ports, and with AF_XDP all of each
// frame but for what identifies IPv4 fragments.
func outside(t *testing.T, file string, n *nettest.ClusterNode, whole bool, wire [][]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	key := func(frame []byte) string {
		if !whole { // MACs and the rest are the kernel's: source and destination, address and port
			return string(frame[26:38])
		}
		frame = bytes.Clone(frame)
		clear(frame[18:20]) // identification
		clear(frame[24:26]) // sum of the header
		return string(frame)
	}
	real := map[string]bool{}
	for _, frame := range wire {
		if len(frame) >= 42 && frame[12] == 8 && frame[13] == 0 {
			real[key(frame)] = true
		}
	}
	seen := map[bool]int{}
	for {
		frame, info, err := r.ReadPacketData()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		about, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(about.Description, "outside") {
			continue
		}
		seen[bytes.Equal(frame[26:30], n.Underlay[0].AsSlice())]++
		if !real[key(frame)] {
			t.Errorf("a frame of the outside that was not on the wire:\n% x", frame[:42])
		}
	}
	if seen[true] == 0 || seen[false] == 0 {
		t.Errorf("%d frames out, %d in", seen[true], seen[false])
	}
}
