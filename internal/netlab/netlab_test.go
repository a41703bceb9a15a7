package netlab_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weft/internal/netlab"
	"weft/internal/nettest"
)

// create makes a namespace that goes with the test.
func create(t *testing.T, label string) *netlab.NS {
	t.Helper()
	nettest.RequireRoot(t)
	ns, err := netlab.Create("weft-test", label)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

func TestDoEntersAndReturns(t *testing.T) {
	ns := create(t, "do")
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	ns.Do(func() {
		inside, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		defer inside.Close()
		if inside.Equal(before) {
			t.Error("Do did not change the namespace")
		}
		ifs, err := net.Interfaces()
		if err != nil || len(ifs) != 1 || ifs[0].Name != "lo" || ifs[0].Flags&net.FlagUp == 0 {
			t.Errorf("interfaces inside = %v, %v; want lo alone, up", ifs, err)
		}
	})
	after, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer after.Close()
	if !after.Equal(before) {
		t.Error("Do did not come back")
	}
}

// TestDoSurvivesGoexit: t.FailNow inside Do ends the goroutine; the deferred return must still happen.
func TestDoSurvivesGoexit(t *testing.T) {
	ns := create(t, "do")
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }()
		ns.Do(func() { panic("as FailNow would") })
	}()
	<-done
	for range 50 { // whichever thread runs this must be at home
		if out, err := exec.Command("ip", "-o", "link").CombinedOutput(); err != nil || len(out) == 0 {
			t.Fatalf("%s %v", out, err)
		}
	}
	if err := <-ns.Go(func() error { return errors.New("carried") }); err == nil || err.Error() != "carried" {
		t.Errorf("Go = %v", err)
	}
}

// aloneEnv says that the test binary is the child of TestFreshMachine.
const aloneEnv = "WEFT_TEST_ALONE"

// TestFreshMachine runs TestAlone and TestReadOnlySysctls where all mounts are private and /run is empty, as in a container or a micro-VM
// without systemd, in which nothing ever ran `ip netns add`.
func TestFreshMachine(t *testing.T) {
	nettest.RequireRoot(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^(TestAlone|TestReadOnlySysctls)$", "-test.v")
	cmd.Env = append(os.Environ(), aloneEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS: ") != 2 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAlone(t *testing.T) {
	if os.Getenv(aloneEnv) == "" {
		return // TestFreshMachine does it
	}
	_ = unix.Unmount(netlab.Dir, unix.MNT_DETACH) // of this mount namespace; not everywhere is one
	if err := unix.Mount("none", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	early := create(t, "early")
	thread, err := early.Thread(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer thread.Close()
	late := create(t, "late")
	if err := thread.Do(func() error { return isNetns(late.Path()) }); err != nil {
		t.Errorf("a namespace is not seen in a mount namespace made before it: %v", err)
	}
	if err := thread.Do(func() error {
		interfaces, err := filepath.Glob("/sys/class/net/*")
		if len(interfaces) != 1 || filepath.Base(interfaces[0]) != "lo" {
			err = fmt.Errorf("/sys shows %v, want lo alone", interfaces)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(mounts), " "+netlab.Dir+" "); n != 1 {
		t.Errorf("%s is mounted %d times, want once", netlab.Dir, n)
	}
	if err := late.Close(); err != nil {
		t.Error(err)
	}
	if err := thread.Do(func() error { return isNetns(late.Path()) }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a removed namespace is still seen in a mount namespace made before: %v", err)
	}
}

// TestReadOnlySysctls: as containers have it, /proc/sys cannot be written. A thread's can, and nobody else's.
func TestReadOnlySysctls(t *testing.T) {
	if os.Getenv(aloneEnv) == "" {
		return // TestFreshMachine does it
	}
	const all, setting = "/proc/sys", "/proc/sys/net/ipv4/ip_forward"
	if err := errors.Join(unix.Mount(all, all, "", unix.MS_BIND, ""), unix.Mount("", all, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	ns := create(t, "read-only")
	thread, err := ns.Thread(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer thread.Close()
	if err := thread.Do(func() error { return os.WriteFile(setting, []byte("1"), 0) }); err != nil {
		t.Errorf("in a thread of a namespace: %v", err)
	}
	ns.Do(func() {
		if got, err := os.ReadFile(setting); err != nil || string(got) != "1\n" {
			t.Errorf("the namespace forwards: %q, %v; want 1", got, err)
		}
		if err := os.WriteFile(setting, []byte("1"), 0); !errors.Is(err, unix.EROFS) {
			t.Errorf("outside of the thread: %v, want a read-only file system", err)
		}
	})
}

// TestPlainSettings: a namespace that has another machine's settings is given the kernel's own, also where /proc/sys cannot be written.
func TestPlainSettings(t *testing.T) {
	nettest.RequireRoot(t)
	ns := create(t, "plain")
	settings := func() string {
		var all []string
		for _, name := range []string{"rp_filter", "arp_ignore", "arp_announce", "forwarding", "log_martians", "accept_source_route", "accept_redirects"} {
			for _, which := range []string{"all", "default"} {
				value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + which + "/" + name)
				all = append(all, fmt.Sprintf("%s/%s %q %v", which, name, value, err))
			}
		}
		return strings.Join(all, "\n")
	}
	var first string
	ns.Do(func() { first = settings() })
	for _, c := range []struct{ name, value string }{{"rp_filter", "1"}, {"arp_ignore", "1"}, {"arp_announce", "2"}, {"forwarding", "1"}, {"log_martians", "1"}, {"accept_source_route", "0"}, {"accept_redirects", "0"}} {
		for _, which := range []string{"all", "default"} {
			if err := ns.Sysctl("ipv4/conf/"+which+"/"+c.name, c.value); err != nil {
				t.Fatal(err)
			}
		}
	}
	var other string
	ns.Do(func() { other = settings() })
	if other == first {
		t.Fatalf("nothing was set: %s", first)
	}
	const all = "/proc/sys"
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with this goroutine
		done <- func() error {
			if err := errors.Join(netns.Set(netns.NsHandle(ns.FD())), unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""),
				unix.Mount(all, all, "", unix.MS_BIND, ""), unix.Mount("", all, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
				return err
			}
			if err := netlab.PlainSettings(); err != nil {
				return err
			}
			if now := settings(); now != first {
				return fmt.Errorf("the settings are\n%s\nwant\n%s", now, first)
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(first, `all/rp_filter "0\n"`) || !strings.Contains(first, `default/accept_source_route "1\n"`) {
		t.Errorf("a new namespace has\n%s", first)
	}
}

// isNetns says whether a file stands for a network namespace (ioctl_ns(2)).
func isNetns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		err = fmt.Errorf("%s is a namespace of kind %x", path, kind)
	}
	return err
}

// TestStaleName: an entry with this process's id that this process did not make is a dead one's, whose id came
// round again: a namespace, or a file whose mount has gone.
func TestStaleName(t *testing.T) {
	create(t, "makes-the-folder")
	for label, leave := range map[string]func(name string) error{
		"file": func(name string) error { return os.WriteFile(filepath.Join(netlab.Dir, name), nil, 0) },
		"namespace": func(name string) error {
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // never unlocked
				ns, err := netns.NewNamed(name)
				done <- errors.Join(err, ns.Close())
			}()
			return <-done
		},
	} {
		t.Run(label, func(t *testing.T) {
			if err := leave(netlab.Name("weft-test", label)); err != nil {
				t.Fatal(err)
			}
			ns := create(t, label)
			if err := isNetns(ns.Path()); err != nil {
				t.Error(err)
			}
			if second, err := netlab.Create("weft-test", label); err == nil {
				second.Close()
				t.Error("two namespaces have the same name")
			}
			if err := isNetns(ns.Path()); err != nil {
				t.Errorf("after a second of its name was refused: %v", err)
			}
		})
	}
}
