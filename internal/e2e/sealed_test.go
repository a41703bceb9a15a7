package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/catalog"
	"weft/internal/nettest"
)

// sealedModes are the modes that can seal: those whose packets pass through the daemon.
func sealedModes() (names []string) {
	for _, m := range catalog.Modes {
		if !kernelForwards(m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// password makes all nodes of a cluster seal with a cipher, by nothing but a password.
func (c *cluster) password(cipher string) {
	file := c.dir + "/psk"
	c.writeFile(file, "correct horse battery staple\n")
	c.encryption = func(*nettest.ClusterNode) string {
		return fmt.Sprintf("encryption: {cipher: %s, psk_file: %s}", cipher, file)
	}
}

// ownKeys gives every node of a cluster a key of its own, published. Most tests seal so: deriving keys
// from a password takes long on purpose, and under the race detector longer.
func (c *cluster) ownKeys(cipher string) {
	c.publicKey = map[string]string{}
	for _, n := range c.Nodes {
		c.publicKey[n.Name] = keys(c.t, "gen", "--file", c.path(n, "key"))
	}
	c.encryption = func(n *nettest.ClusterNode) string { return c.sealing(n, cipher, "") }
}

// sealing is the section of a node with a key of its own; permit names nodes that need not seal.
func (c *cluster) sealing(n *nettest.ClusterNode, cipher, permit string) string {
	return fmt.Sprintf("encryption: {cipher: %s, key_file: %s, permit_plaintext_from: [%s]}", cipher, c.path(n, "key"), permit)
}

// peer is what `weft peers` says.
type peer struct {
	Node    string `json:"node"`
	Way     string `json:"way"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
	Session *struct {
		Established bool              `json:"established"`
		Reason      string            `json:"reason"`
		Cipher      string            `json:"cipher"`
		PeerCipher  string            `json:"peer_cipher"`
		Handshakes  uint64            `json:"handshakes"`
		Sealed      uint64            `json:"sealed"`
		CookiesSent uint64            `json:"cookies_sent"`
		Rejected    map[string]uint64 `json:"rejected"`
	} `json:"session"`
}

func (c *cluster) peers(n *nettest.ClusterNode) (list []peer) {
	c.t.Helper()
	if err := c.ask(n, &list, "peers"); err != nil {
		c.t.Fatal(err)
	}
	return list
}

// TestSealed: every mode that can seal does so, one of them by one secret and one line, carries small, large and
// bulk packets, survives a kill, and never shows an inner byte on the underlay.
func TestSealed(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	ciphers := []string{"aes-256-gcm", "chacha20-poly1305", "aes-128-gcm", "auto"}
	for i, mode := range sealedModes() {
		for k, family := range []int{4, 6} {
			if k != i%2 && mode != "tun-gso" && mode != "xdp" {
				continue // what the family changes is the ports' affair; two kinds of them show it
			}
			cipher := ciphers[(2*i+k)%len(ciphers)]
			t.Run(fmt.Sprintf("%s+%s/underlay%d", mode, cipher, family), func(t *testing.T) {
				t.Parallel()
				c := prepare(t, mode, family, nettest.ClusterOptions{Bridge: true})
				a, b := c.Nodes[0], c.Nodes[1]
				shown := watchPattern(t, c)
				if mode == "tun-gso" && family == 4 {
					c.password(cipher)
				} else {
					c.ownKeys(cipher)
				}
				c.launch()
				s, err := c.status(a)
				if err != nil {
					t.Fatal(err)
				}
				for i, to := range b.PodAddrs {
					head := 28
					if i == 1 {
						head = 48
					}
					if err := ping(a.Pod, to, "-M", "do", "-s", strconv.Itoa(s.InnerMTU-head), "-p", pattern); err != nil {
						t.Error(err)
					}
					out, err := a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(s.InnerMTU-head+1), to.String())
					if err == nil {
						t.Errorf("one byte above the inner MTU passed:\n%s", out)
					}
					for _, dir := range [][2]*nettest.ClusterNode{{a, b}, {b, a}} {
						if err := bulk(dir[0].Pod, dir[1].Pod, dir[1].PodAddrs[i], 4<<20); err != nil {
							t.Errorf("%s → %s: %v", dir[0].Name, dir[1].Name, err)
						}
					}
				}
				c.verified(2e7, time.Second)
				if got := flood(t, a.Pod, b.Pod, b.PodAddrs[0], 2000); got != 2000 {
					t.Errorf("%d of 2000 paced packets arrived", got)
				}
				for _, n := range []*nettest.ClusterNode{a, b} {
					for _, p := range c.peers(n) {
						if p.Session == nil || !p.Session.Established || cipher != "auto" && p.Session.Cipher != cipher {
							t.Errorf("%s: peer %+v, session %+v", n.Name, p, p.Session)
						}
					}
				}
				// Killed and started again: new keys, and traffic without anybody's help.
				for _, n := range []*nettest.ClusterNode{a, b} {
					c.stop(n, syscall.SIGKILL)
					ping(a.Pod, b.PodAddrs[0], "-p", pattern)
					ping(b.Pod, a.PodAddrs[1], "-p", pattern)
					c.start(n)
					ping(a.Pod, b.PodAddrs[0], "-p", pattern)
					c.ready(n)
					c.eventually("patterned packets pass again", func() error {
						return errors.Join(ping(a.Pod, b.PodAddrs[0], "-p", pattern), ping(b.Pod, a.PodAddrs[1], "-p", pattern))
					})
				}
				if n := shown(); n > 0 {
					t.Errorf("%d frames on the underlay hold an inner packet's bytes", n)
				}
			})
		}
	}
}

// pattern is what inner packets are filled with, in ping's notation; needle is a piece of them. The
// bytes of bulk's pattern are in bulkNeedle.
const pattern = "77656674696e6e65" // weftinne

var needles = [][]byte{[]byte("weftinneweftinne"), bulkNeedle()}

func bulkNeedle() []byte {
	b := make([]byte, 24)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

// watchPattern captures on the underlay until the returned function is called, which says how many
// frames held inner bytes.
func watchPattern(t *testing.T, c *cluster) func() int {
	t.Helper()
	frames := capture(t, c.Fabric, "port1", 400) // headers and a piece of the data
	return func() (n int) {
		total := 0
		for _, f := range frames() {
			total++
			for _, needle := range needles {
				if bytes.Contains(f, needle) {
					n++
				}
			}
		}
		if total < 100 {
			t.Errorf("the capture saw %d frames: it proves nothing", total)
		}
		return n
	}
}

// capture keeps the first bytes of all frames of an interface until the returned function is called.
// On the nodes' own interfaces it would not see what AF_XDP sockets send and receive.
func capture(t *testing.T, on *nettest.NS, device string, keep int) func() [][]byte {
	t.Helper()
	var fd int
	var err error
	on.Do(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // hears nothing until it is bound
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := on.Netlink().LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan [][]byte)
	go func() {
		var seen [][]byte
		buf := make([]byte, keep)
		for {
			n, err := unix.Read(fd, buf)
			if err == nil {
				seen = append(seen, bytes.Clone(buf[:n]))
				continue
			}
			select {
			case <-stop:
				unix.Close(fd)
				done <- seen
				return
			default:
			}
		}
	}()
	return func() [][]byte { close(stop); return <-done }
}

// TestPatternIsSeenInClear holds the capture of TestSealed to a mode that seals nothing.
func TestPatternIsSeenInClear(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "tun", 4, nettest.ClusterOptions{Bridge: true})
	shown := watchPattern(t, c)
	c.launch()
	if err := bulk(c.Nodes[0].Pod, c.Nodes[1].Pod, c.Nodes[1].PodAddrs[0], 1<<20); err != nil {
		t.Error(err)
	}
	for range 20 {
		if err := ping(c.Nodes[0].Pod, c.Nodes[1].PodAddrs[0], "-p", pattern); err != nil {
			t.Error(err)
		}
	}
	if n := shown(); n < 20 {
		t.Errorf("%d frames with the pattern were seen in clear: the capture is blind", n)
	}
}

// keys runs `weft keys` and returns the public key it prints.
func keys(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(weft, append([]string{"keys"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("weft keys %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestPublishedKeys: nodes that prove themselves by keys of their own, and one that holds a key
// other than the published one.
func TestPublishedKeys(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "tun-gso", 4, nettest.ClusterOptions{Nodes: 3})
	c.ownKeys("auto")
	for _, n := range c.Nodes {
		if shown := keys(t, "show", "--file", c.path(n, "key")); shown != c.publicKey[n.Name] {
			t.Errorf("%s: gen printed %s, show %s", n.Name, c.publicKey[n.Name], shown)
		}
	}
	c.launch()

	// A stranger's key in the list: nothing passes to or from that node, and it says why.
	a, b := c.Nodes[0], c.Nodes[1]
	honest := c.publicKey[b.Name]
	c.publicKey[b.Name] = keys(t, "gen", "--file", c.dir+"/stranger")
	c.writeNodes()
	c.eventually("the node with another key is silent", func() error {
		if err := ping(a.Pod, b.PodAddrs[0]); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})
	c.eventually("and says why", func() error {
		var s struct {
			Ready  bool   `json:"ready"`
			Reason string `json:"reason"`
		}
		if err := c.ask(b, &s, "status"); err != nil {
			return err
		}
		if s.Ready || !strings.Contains(s.Reason, "public key") {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	c.publicKey[b.Name] = honest
	c.writeNodes()
	c.allReach()
}

// TestWrongPassword: a node with another password carries nothing, and doctor says what is wrong.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "tun", 4, nettest.ClusterOptions{})
	a, b := c.Nodes[0], c.Nodes[1]
	c.password("auto")
	c.launch()
	c.stop(b, syscall.SIGTERM)
	right := c.encryption
	c.writeFile(c.dir+"/other", "another password\n")
	c.encryption = func(*nettest.ClusterNode) string {
		return fmt.Sprintf("encryption: {cipher: auto, psk_file: %s/other}", c.dir)
	}
	c.start(b)
	c.ready(b)
	c.eventually("a's doctor blames the password", func() error {
		var out bytes.Buffer
		cmd := exec.Command(weft, "doctor", "--config", c.path(a, "weft.yaml"), "--socket", c.path(a, "sock"))
		cmd.Stdout = &out
		if err := a.NS.StartCmd(cmd); err != nil {
			return err
		}
		cmd.Wait() // it finds something wrong
		if text := out.String(); !strings.Contains(text, "psk_file") {
			return errors.New(text)
		}
		return nil
	})
	if err := ping(b.Pod, a.PodAddrs[0]); err == nil {
		t.Error("a node with another password is answered")
	}
	c.stop(b, syscall.SIGKILL)
	c.encryption = right
	c.start(b)
	c.ready(b)
	c.allReach()
}

// TestMigration: a cluster is sealed node by node while all of it stays reachable, and a plaintext
// node that is not permitted is not.
func TestMigration(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, mode := range []string{"udp", "tun-gso", "xdp"} { // IP and VXLAN in clear; two kinds of ports
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{})
			a, b := c.Nodes[0], c.Nodes[1]
			c.launch()
			c.ownKeys("auto")
			c.writeNodes()
			sealed := map[string]string{}
			c.encryption = func(n *nettest.ClusterNode) string { return sealed[n.Name] }
			// a seals and still permits b, which does not seal yet.
			permit := func(n, other *nettest.ClusterNode) string { return c.sealing(n, "auto", other.Name) }
			restart := func(n *nettest.ClusterNode, encryption string) {
				sealed[n.Name] = encryption
				c.stop(n, syscall.SIGTERM)
				c.start(n)
				c.ready(n)
			}
			restart(a, permit(a, b))
			c.allReach()
			restart(b, permit(b, a))
			c.allReach()
			c.eventually("both seal", func() error {
				for _, n := range []*nettest.ClusterNode{a, b} {
					if s := c.peers(n)[0].Session; s == nil || !s.Established {
						return fmt.Errorf("%s: %+v", n.Name, s)
					}
				}
				return nil
			})
			// Without permission plaintext is neither sent nor taken.
			restart(a, c.sealing(a, "auto", ""))
			c.allReach()
			restart(b, "")
			for range 3 {
				if ping(b.Pod, a.PodAddrs[0]) == nil || ping(a.Pod, b.PodAddrs[0]) == nil {
					t.Fatal("plaintext passes without permission")
				}
			}
			restart(b, permit(b, a))
			c.allReach()
		})
	}
}
