package pods

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft/api"
	"weft/internal/nettest"
)

// TestDamagedStore: whatever happens to the list of pods, the daemon starts, pods that live go on, under their names as soon as somebody knows them, their
// addresses stay theirs, and the damaged file stays for people to look at.
func TestDamagedStore(t *testing.T) {
	nettest.RequireTool(t, "ping")
	for name, c := range map[string]struct {
		do    func(file string) error
		named bool // the names can be read of the file
		cache bool // they are in the runtime's cache
		whole bool // nothing is set aside
	}{
		"empty":                   {do: func(f string) error { return os.Truncate(f, 0) }},
		"empty, cached":           {do: func(f string) error { return os.Truncate(f, 0) }, named: true, cache: true},
		"removed":                 {do: os.Remove, whole: true},
		"cut in the middle":       {do: func(f string) error { return os.Truncate(f, 9000) }},
		"cut behind what is used": {do: func(f string) error { return os.Truncate(f, size(f)-1) }, named: true, whole: true},
		"no beginning":            {do: func(f string) error { return write(f, 0, make([]byte, 2*os.Getpagesize())) }, named: true},
		"an unreadable record":    {do: func(f string) error { return replace(f, `"container_id":"x"`, `"container_id":7x7`) }},
		"pages elsewhere": {do: func(f string) error {
			for at := int64(2 * os.Getpagesize()); at < size(f); at += int64(os.Getpagesize()) {
				if err := write(f, at, []byte{0xff, 0xff, 0xff}); err != nil {
					return err
				}
			}
			return nil
		}, named: true},
	} {
		for _, style := range []string{Routed, Bridge} {
			t.Run(name+"/"+style, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, style)
				r.o.ResultCache = t.TempDir()
				pods := []*nettest.NS{nettest.New(t), nettest.New(t)}
				var have []api.AttachResult
				for i, id := range []string{"x", "y"} {
					have = append(have, r.attach(request(pods[i], id)))
					if c.cache {
						entry := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"ifName":"eth0","networkName":"weft","cniArgs":[["K8S_POD_NAME","pod-%s"]]}`, id, id)
						if err := os.WriteFile(filepath.Join(r.o.ResultCache, "weft-"+id+"-eth0"), []byte(entry), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
				r.close()
				file := filepath.Join(r.o.StateDir, File)
				if err := c.do(file); err != nil {
					t.Fatal(err)
				}
				before := r.inKernel()
				r.start()
				if got := r.inKernel(); !slices.Equal(got, before) {
					t.Errorf("in the kernel:\n%q\nwas\n%q", got, before)
				}
				if _, err := os.Stat(file + Damaged); (err == nil) == c.whole {
					t.Errorf("set aside: %v", err)
				}
				for i := range have[0].IPs {
					reach(t, pods[0], have[1].IPs[i].Address.Addr())
				}
				list, err := r.m.Pods()
				if err != nil || len(list) != 2 {
					t.Fatalf("%+v, %v", list, err)
				}
				for _, p := range list {
					if c.named && (p.PodName != "pod-"+p.ContainerID || p.Network != "weft") {
						t.Errorf("%+v", p)
					}
				}
				third := nettest.New(t)
				z := r.attach(request(third, "z"))
				for i, ip := range z.IPs {
					if ip.Address == have[0].IPs[i].Address || ip.Address == have[1].IPs[i].Address {
						t.Errorf("%v is given twice", ip.Address)
					}
				}
				q := request(pods[0], "x")
				if err := r.m.Check(t.Context(), api.CheckRequest{AttachRequest: q, Expect: have[0]}); err != nil {
					t.Errorf("check: %v", err)
				}
				if again, err := r.m.Attach(t.Context(), request(pods[1], "y")); err != nil || fmt.Sprint(addresses(again)) != fmt.Sprint(addresses(have[1])) {
					t.Errorf("asked again: %+v, %v", again, err)
				}
				for _, id := range []string{"x", "y", "z"} {
					if err := r.m.Detach(context.Background(), api.DetachRequest{ContainerID: id, IfName: "eth0", Network: "weft"}); err != nil {
						t.Error(err)
					}
				}
				if left := r.left(); len(left) > 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	}
}

// TestPodsWordDoesNotCount: when the list of pods is made anew, a pod that gave its interface another's addresses, and another MAC and
// MTU, is written down with what it was given.
func TestPodsWordDoesNotCount(t *testing.T) {
	for _, style := range []string{Routed, Bridge} {
		for name, c := range map[string]struct{ check, cache, nobody bool }{
			"checked": {check: true}, "cached": {cache: true}, "checked and cached": {check: true, cache: true}, "nobody knows": {nobody: style == Bridge},
		} {
			t.Run(style+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, style)
				r.o.ResultCache, r.o.SpoofCheck = t.TempDir(), c.check
				r.restart()
				ids, have, given := []string{"x", "y"}, map[string]api.AttachResult{}, map[netip.Addr]string{}
				pods := map[string]*nettest.NS{}
				for _, id := range ids {
					pods[id] = nettest.New(t)
					a := r.attach(request(pods[id], id))
					have[id] = a
					entry := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"ifName":"eth0","networkName":"weft","result":{"interfaces":[{"name":%q},`+
						`{"name":"eth0","mac":%q,"sandbox":%q}],"ips":[{"address":%q},{"address":%q}]}}`, id, a.HostInterface, a.PodInterface.MAC, pods[id].Path(), a.IPs[0].Address, a.IPs[1].Address)
					if c.cache {
						if err := os.WriteFile(filepath.Join(r.o.ResultCache, "weft-"+id+"-eth0"), []byte(entry), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
				link, err := r.host.Netlink().LinkByName(have["x"].HostInterface)
				if err != nil {
					t.Fatal(err)
				}
				if c.check { // also of a pod whose namespace is not to be found
					p, vouched, err := r.m.living(link.Attrs(), nil, nil, node.Prefixes)
					if err != nil || !vouched || p.MAC != have["x"].PodInterface.MAC || len(p.Addrs) != 2 || p.Addrs[0] != have["x"].IPs[0].Address.Addr() {
						t.Errorf("without its namespace: %+v, %t, %v", p, vouched, err)
					}
				}
				r.close()
				pods["x"].MustRun(t, "sh", "-c", "ip addr flush dev eth0 scope global; ip link set eth0 address 02:00:00:00:00:99 mtu 1300; ip addr add "+have["y"].IPs[0].Address.String()+
					" dev eth0; ip -6 addr add "+have["y"].IPs[1].Address.String()+" dev eth0 nodad")
				if err := os.Truncate(filepath.Join(r.o.StateDir, File), 0); err != nil {
					t.Fatal(err)
				}
				r.start()
				list, err := r.m.Pods()
				if err != nil || len(list) != 2 {
					t.Fatalf("%+v, %v", list, err)
				}
				for _, p := range list {
					for _, a := range p.IPs {
						if given[a] != "" {
							t.Errorf("%s is written down for %s and %s", a, given[a], p.HostInterface)
						}
						given[a] = p.HostInterface
					}
				}
				for _, a := range have {
					for _, ip := range a.IPs {
						if !c.nobody && given[ip.Address.Addr()] != a.HostInterface {
							t.Errorf("%s of %s is written down for %q", ip.Address, a.HostInterface, given[ip.Address.Addr()])
						}
					}
					for _, p := range list {
						if p.HostInterface == a.HostInterface && !c.nobody && p.MAC != a.PodInterface.MAC {
							t.Errorf("%s has MAC %s, not %s", p.HostInterface, p.MAC, a.PodInterface.MAC)
						}
					}
				}
				if link, err := r.host.Netlink().LinkByName(have["x"].HostInterface); err != nil || link.Attrs().MTU != node.MTU {
					t.Errorf("the node's end: %+v, %v", link, err)
				}
			})
		}
	}
}

func addresses(a api.AttachResult) (list []netip.Prefix) {
	for _, ip := range a.IPs {
		list = append(list, ip.Address)
	}
	return list
}

// inKernel is what there is of pods in the node's kernel: links by name and MAC, for whether one has carrier yet is no part of it.
func (r *rig) inKernel() (list []string) {
	r.t.Helper()
	for line := range strings.Lines(r.host.MustRun(r.t, "ip", "-br", "link")) {
		if strings.HasPrefix(line, "weft") {
			fields := strings.Fields(line)
			list = append(list, fields[0]+" "+fields[2])
		}
	}
	return append(list, strings.Split(r.host.MustRun(r.t, "ip", "route", "show", "proto", "87"), "\n")...)
}

func size(f string) int64 {
	info, err := os.Stat(f)
	if err != nil {
		return 0
	}
	return info.Size()
}

func write(f string, at int64, b []byte) error {
	file, err := os.OpenFile(f, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteAt(b, at)
	return err
}

func replace(f, old, now string) error {
	data, err := os.ReadFile(f)
	if err == nil && !strings.Contains(string(data), old) {
		err = fmt.Errorf("%s is not in it", old)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(f, []byte(strings.ReplaceAll(string(data), old, now)), 0o600)
}

// TestSoundMeansUsable: a file with a byte changed anywhere is either named damaged or can be used.
func TestSoundMeansUsable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, File)
	s, err := openStore(file, "boot")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		r := &record{Network: "weft", ContainerID: fmt.Sprint("c", i), IfName: "eth0", MAC: "02:00:00:00:00:01"}
		if err := s.reserve(r, nil, prefixes("10.244.1.0/24", "fd00::/64")); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := s.free(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if records, err := damage(file); err != nil {
		t.Fatalf("a sound file: %v, %d records", err, len(records))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dice := rand.New(rand.NewPCG(1, 2))
	found, passed := 0, 0
	for range 400 {
		bad := slices.Clone(data)
		at := dice.IntN(len(bad))
		bad[at] ^= 1 << dice.IntN(8)
		if dice.IntN(8) == 0 {
			bad = bad[:dice.IntN(len(bad))]
		}
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := damage(file); err != nil {
			found++
			continue
		}
		passed++ // the byte was in free space, or a letter of a name
		s, err := openStore(file, "boot")
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		if _, err := s.all(); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
		if err := s.finish(&record{Network: "weft", ContainerID: "new", IfName: "eth0"}); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 || passed == 0 {
		t.Errorf("%d were found damaged, %d sound: the test shows nothing", found, passed)
	}
}

// TestFreePagesFit: a list of free pages is not longer than its page, whatever number it names.
func TestFreePagesFit(t *testing.T) {
	const pageSize, room = 4096, (4096 - pageHeader) / 8
	for _, c := range []struct {
		count uint16
		more  uint64 // where count is 0xFFFF
		fits  bool
	}{
		{count: 0, fits: true}, {count: 0xFFFF, more: 0, fits: true}, {count: room + 1}, {count: 0xFFFF, more: room}, {count: 0xFFFF, more: 1 << 61},
		{count: 0xFFFF, more: 1<<63 - 1}, {count: 0xFFFF, more: 1 << 63}, {count: 0xFFFF, more: 1<<64 - 1},
	} {
		b := &boltFile{data: make([]byte, 3*pageSize), pageSize: pageSize, last: 3, seen: map[uint64]bool{}}
		page := b.data[2*pageSize:]
		binary.NativeEndian.PutUint64(page, 2)
		binary.NativeEndian.PutUint16(page[8:], freelistPage)
		binary.NativeEndian.PutUint16(page[10:], c.count)
		binary.NativeEndian.PutUint64(page[pageHeader:], c.more)
		if err := b.freelist(2); (err == nil) != c.fits {
			t.Errorf("%d, %d: %v", c.count, c.more, err)
		}
	}
}

func FuzzCheckBolt(f *testing.F) {
	file := filepath.Join(f.TempDir(), File)
	s, err := openStore(file, "boot")
	if err != nil {
		f.Fatal(err)
	}
	if err := s.close(); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), File)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = damage(file) // does not panic, and ends
	})
}
