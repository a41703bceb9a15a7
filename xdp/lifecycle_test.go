package xdp

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// childVariable makes this test binary a process that only opens a pair and forwards, to be killed.
const childVariable = "WEFT_XDP_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		fmt.Println(child())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// child opens a pair in the network namespace it was started in and bounces every tunnel packet to where it came from.
func child() error {
	_, out, err := OpenPair(testConfig())
	if err != nil {
		return err
	}
	fmt.Println("open")
	q := out.Queues()[0]
	b := packettest.NewBatch(q, packet.BatchSize, 0)
	for {
		if err := q.Recv(b); err != nil {
			return err
		}
		packets := b.Packets()
		for i := range packets {
			packets[i].Hop = &packet.Hop{Path: packet.NewPath(netip.Addr{}, packets[i].From, 0)}
		}
		if err := q.Send(b); err != nil {
			return err
		}
	}
}

// startChild starts one and waits until it is open.
func startChild(t *testing.T, ns *nettest.NS) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.StartCmd(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "open\n" {
		t.Fatalf("the child says %q: %v", line, err)
	}
	return cmd
}

// TestKilledUnderLoad: the process is killed while it forwards; the underlay's other traffic does not stop, and a new
// process opens the same ports.
func TestKilledUnderLoad(t *testing.T) {
	u := newUnderlay(t)
	far := datagrams(t, u.b, addrsB[0], 0)
	stop := make(chan struct{})
	done := make(chan struct{}, 2)
	go func() { // the load
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = far.WriteToUDPAddrPort([]byte("load"), hopTo(addrsA[0]).Path.Dst)
			}
		}
	}()
	// Somebody else's conversation on the same device. A request may be lost in a queue that the load has filled, but
	// the next is answered.
	here, there := datagrams(t, u.a, addrsA[0], 2000), datagrams(t, u.b, addrsB[0], 2000)
	var answered atomic.Int64
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := here.ReadFromUDPAddrPort(buf)
			if err != nil {
				return // the test closed it
			}
			_, _ = here.WriteToUDPAddrPort([]byte("pong"), from)
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		buf := make([]byte, 16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = there.WriteToUDPAddrPort([]byte("ping"), netip.AddrPortFrom(addrsA[0], 2000))
			_ = there.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := there.Read(buf); err == nil {
				answered.Add(1)
			}
		}
	}()
	for range 3 {
		cmd := startChild(t, u.a)
		if _, _, err := readUDP(far); err != nil { // it forwards
			t.Fatal(err)
		}
		talked := answered.Load()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		until(t, "the dead process's interface to go", func() bool {
			_, err := u.a.Netlink().LinkByName("weft0")
			return err != nil
		})
		until(t, "other traffic", func() bool { return answered.Load() > talked+100 })
	}
	// In this process, over what the last one left: perhaps a queue not yet free.
	inside, outside := openBoth(t, u, testConfig())
	close(stop)
	<-done
	<-done
	if err := errors.Join(inside.Close(), outside.Close()); err != nil {
		t.Error(err)
	}
	if out, err := u.a.Run("ip", "link", "show", "weft0"); err == nil {
		t.Errorf("Close left the interface: %s", out)
	}
	if out := u.a.MustRun(t, "ip", "link", "show", "eth0"); strings.Contains(out, "xdp") {
		t.Errorf("Close left the program: %s", out)
	}
}

// foreign attaches somebody else's program.
func foreign(t *testing.T, ns *nettest.NS, dev string, flags link.XDPAttachFlags) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	index := linkIndex(t, ns, dev)
	var l link.Link
	ns.Do(func() { l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: index, Flags: flags}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func linkIndex(t *testing.T, ns *nettest.NS, dev string) int {
	t.Helper()
	l, err := ns.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// TestForeignProgramRefused: somebody else's program stays, in either mode, and the error names it and the remedy.
func TestForeignProgramRefused(t *testing.T) {
	for name, flags := range map[string]link.XDPAttachFlags{"native": link.XDPDriverMode, "generic": link.XDPGenericMode} {
		t.Run(name, func(t *testing.T) {
			u := newUnderlay(t)
			foreign(t, u.a, "eth0", flags)
			attached := func() string {
				_, program, _ := strings.Cut(u.a.MustRun(t, "ip", "-d", "link", "show", "eth0"), "prog/")
				return program
			}
			before := attached()
			var err error
			u.a.Do(func() { _, _, err = OpenPair(testConfig()) })
			if err == nil || !strings.Contains(err.Error(), `"stranger"`) || !strings.Contains(err.Error(), "ip link set dev eth0 xdp off") {
				t.Errorf("error %v, want one that names the program and the remedy", err)
			}
			if after := attached(); before == "" || after != before {
				t.Errorf("the program was %q and is %q", before, after)
			}
			if out, err := u.a.Run("ip", "link", "show", "weft0"); err == nil {
				t.Errorf("an interface was left: %s", out)
			}
		})
	}
}

// TestSecondPortRefused: a device serves one weft.
func TestSecondPortRefused(t *testing.T) {
	u := newUnderlay(t)
	openIn(t, u.a, OpenOutside, testConfig())
	c := testConfig()
	c.Port++
	var err error
	u.a.Do(func() { _, err = OpenOutside(c) })
	if err == nil || !strings.Contains(err.Error(), "in use by another weft") {
		t.Errorf("error %v", err)
	}
}

// TestInsideTaken: an interface of the name that does not go is somebody's.
func TestInsideTaken(t *testing.T) {
	u := newUnderlay(t)
	openIn(t, u.a, OpenInside, testConfig())
	var err error
	u.a.Do(func() { _, err = OpenInside(testConfig()) })
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "ip link del weft0") {
		t.Errorf("error %v", err)
	}
}

// TestEndpointTaken: the tunnel's port belongs to a vxlan device of the kernel's.
func TestEndpointTaken(t *testing.T) {
	nettest.RequireKernel(t, kernel.VXLAN)
	u := newUnderlay(t)
	u.a.MustRun(t, "ip", "link", "add", "vx0", "up", "type", "vxlan", "id", "1", "dstport", "4789", "local", "192.0.2.1")
	var err error
	u.a.Do(func() { _, err = OpenOutside(testConfig()) })
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "vxlan") {
		t.Errorf("error %v", err)
	}
}

// TestBusyQueue: a queue that another socket has is waited for, and an error in the end.
func TestBusyQueue(t *testing.T) {
	u := newUnderlay(t)
	taken := func() socket {
		var s socket
		var err error
		u.a.Do(func() {
			if s, err = newSocket(); err != nil {
				return
			}
			var mem *umem
			if mem, err = newUMEM(64, smallFrame); err != nil {
				return
			}
			index := linkIndex(t, u.a, "eth0")
			err = errors.Join(s.register(mem), s.size(64, unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING),
				s.bind(index, 0, -1))
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := taken()
	freed := make(chan error)
	time.AfterFunc(100*time.Millisecond, func() { freed <- first.close() }) // long enough to be in the way, no matter if not
	out := openIn(t, u.a, OpenOutside, testConfig())
	if err := errors.Join(<-freed, out.Close()); err != nil {
		t.Error(err)
	}
	second := taken()
	defer second.close()
	var err error
	u.a.Do(func() { _, err = OpenOutside(testConfig()) })
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "ss --xdp") {
		t.Errorf("error %v", err)
	}
}

// TestGenericFallback: where the driver refuses, the kernel's generic path serves, and the port says so.
func TestGenericFallback(t *testing.T) {
	u := underlay{nettest.New(t), nettest.New(t)}
	// A veth refuses native XDP while its peer has more transmit queues than it has receive queues.
	u.a.MustRun(t, "ip", "link", "add", "eth0", "numrxqueues", "1", "numtxqueues", "1", "type", "veth",
		"peer", "name", "eth0", "netns", u.b.Name(), "numrxqueues", "2", "numtxqueues", "2")
	for _, end := range []struct {
		ns    *nettest.NS
		addrs []string
	}{{u.a, []string{"192.0.2.1/24", "2001:db8::1/64"}}, {u.b, []string{"192.0.2.2/24", "2001:db8::2/64"}}} {
		if err := end.ns.LinkUp("eth0"); err != nil {
			t.Fatal(err)
		}
		if err := end.ns.AddAddrs("eth0", nettest.Prefixes(end.addrs...)...); err != nil {
			t.Fatal(err)
		}
	}
	c := testConfig()
	c.Attach = Native
	var err error
	u.a.Do(func() { _, err = OpenOutside(c) })
	if err == nil || !strings.Contains(err.Error(), "native") {
		t.Errorf("native was not refused: %v", err)
	}
	c.Attach = Auto
	out := openIn(t, u.a, OpenOutside, c)
	if f := out.Features()["xdp-native"]; !strings.Contains(f, "refused") {
		t.Errorf("xdp-native: %q", f)
	}
	far := datagrams(t, u.b, addrsB[0], testPort)
	if _, err := far.WriteToUDPAddrPort([]byte("generic"), hopTo(addrsA[0]).Path.Dst); err != nil {
		t.Fatal(err)
	}
	b := packettest.NewBatch(out.Queues()[0], 1, 0)
	stopAfter(t, out)
	if err := out.Queues()[0].Recv(b); err != nil || string(b.Packets()[0].Bytes()) != "generic" {
		t.Errorf("%v", err)
	}
}

// TestDeviceGone: Recv and Send fail when somebody deletes the device, and Close still works.
func TestDeviceGone(t *testing.T) {
	u := newUnderlay(t)
	in, out := openBoth(t, u, testConfig())
	resolve(t, out, hopTo(addrsB[0]))
	for _, port := range []packet.Port{in, out} {
		q := port.Queues()[0]
		failed := make(chan error, 1)
		go func() {
			b := packettest.NewBatch(q, 8, 0)
			for {
				if err := q.Recv(b); err != nil {
					failed <- err
					return
				}
			}
		}()
		u.a.MustRun(t, "ip", "link", "del", port.Name())
		select {
		case err := <-failed:
			if errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "gone") {
				t.Errorf("%s: %v", port.Name(), err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: Recv still waits for a device that is gone", port.Name())
		}
		b := packettest.NewBatch(q, 1, 0)
		loadBatch(b, 1, []byte{0x45, 1, 2, 3}, hopTo(addrsB[0]))
		if err := q.Send(b); err == nil {
			t.Errorf("%s: Send to a device that is gone succeeded", port.Name())
		}
	}
}

// TestLinkFlap: while the far end is down every packet is refused by name; while our own is, they wait; afterwards
// traffic flows and no frame is missing.
func TestLinkFlap(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	far := datagrams(t, u.b, addrsB[0], testPort)
	hop := hopTo(addrsB[0])
	resolve(t, out, hop)
	b := packettest.NewBatch(q, 16, 0)
	send := func() (refused int) {
		loadBatch(b, 16, []byte("flap"), hop)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Packets() {
			if b.Packets()[i].Drop == packet.Refused {
				refused++
			}
		}
		return refused
	}
	if n := send(); n != 0 {
		t.Errorf("%d refused while the link is up", n)
	}
	// Neighbours are forgotten when a link goes down; this is about the ring.
	mac := macOf(t, u.b, "eth0")
	u.a.MustRun(t, "ip", "neigh", "replace", addrsB[0].String(), "lladdr", net.HardwareAddr(mac[:]).String(), "dev", "eth0", "nud", "permanent")
	u.b.MustRun(t, "ip", "link", "set", "eth0", "down")
	until(t, "the way over a link without carrier", func() bool { return macIn(out.resolver.destination(hop.Path.Dst)) != [6]byte{} })
	if n := send(); n != 16 {
		t.Errorf("%d of 16 refused while the far end is down", n)
	}
	u.b.MustRun(t, "ip", "link", "set", "eth0", "up")
	until(t, "packets to arrive again", func() bool {
		send()
		_ = far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		buf := make([]byte, 10)
		n, err := far.Read(buf)
		return err == nil && string(buf[:n]) == "flap"
	})
	settled(t, own(out.rings))
	audit(t, own(out.rings)[0].umem, own(out.rings), b)
}
