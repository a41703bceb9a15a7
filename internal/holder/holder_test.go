package holder

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

func TestReadSockets(t *testing.T) {
	text := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1234: 010200C0:12B5 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 31337 2 0000000000000000 0
 1235: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 21477 2 0000000000000000 0
 1236: nonsense
`
	inodes := map[string]bool{}
	if err := readSockets(strings.NewReader(text), 4789, inodes); err != nil || len(inodes) != 1 || !inodes["31337"] {
		t.Errorf("%v, %v", inodes, err)
	}
}

// TestPorts: a socket's process is named, and a kernel device that has one.
func TestPorts(t *testing.T) {
	nettest.RequireKernel(t, kernel.VXLAN)
	ns := nettest.New(t)
	ns.MustRun(t, "ip", "link", "add", "theirs", "type", "vxlan", "id", "1", "dstport", "4789")
	ns.MustRun(t, "ip", "link", "set", "theirs", "up")
	me := Process(os.Getpid())
	ns.Do(func() {
		u, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer u.Close()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		if got, err := UDP(uint16(u.LocalAddr().(*net.UDPAddr).Port)); err != nil || !slices.Equal(got, []string{me}) {
			t.Errorf("UDP: %v, %v; want %s", got, err, me)
		}
		if got, err := TCP(uint16(l.Addr().(*net.TCPAddr).Port)); err != nil || !slices.Equal(got, []string{me}) {
			t.Errorf("TCP: %v, %v; want %s", got, err, me)
		}
		if got, err := UDP(4789); err != nil || !slices.Contains(got, "the vxlan device theirs") {
			t.Errorf("vxlan: %v, %v", got, err)
		}
		if got, err := UDP(9); err != nil || len(got) > 0 {
			t.Errorf("nobody: %v, %v", got, err)
		}
	})
}

// TestOthers: who has a netlink socket, and a file.
func TestOthers(t *testing.T) {
	me := []string{Process(os.Getpid())}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	port := at.(*unix.SockaddrNetlink).Pid
	if got, err := Netlink(unix.NETLINK_ROUTE, port); err != nil || !slices.Equal(got, me) {
		t.Errorf("%v, %v, want %s", got, err, me)
	}
	if got, err := Netlink(unix.NETLINK_GENERIC, port); err != nil || len(got) > 0 {
		t.Errorf("of another protocol: %v, %v", got, err)
	}
	name := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := File(name); !slices.Equal(got, me) || len(File(name+"2")) > 0 {
		t.Errorf("%v, want %s", got, me)
	}
}

// TestDevices: kind, alias and process of a device.
func TestDevices(t *testing.T) {
	nettest.RequireKernel(t, kernel.Veth, kernel.TUN)
	ns := nettest.New(t)
	ns.MustRun(t, "sh", "-ec", "ip link add weft0 type veth peer name other; ip link set weft0 alias 'made by hand'; ip tuntap add mode tun name tun9")
	ns.Do(func() {
		for name, want := range map[string]string{"weft0": `a veth device with the alias "made by hand"`, "tun9": "a tuntap device", "none": ""} {
			if got := Device(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if got := fmt.Sprint(Tun("tun9")); got != "[]" {
			t.Errorf("nobody has it open: %s", got)
		}
	})
}
