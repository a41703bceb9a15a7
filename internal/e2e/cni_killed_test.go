package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft/api"
	"weft/internal/nettest"
)

// killed is a runtime that calls the plugin as a process, which it may kill.
type killed struct {
	*runtime
	plugin  string
	plugins string // the directory of others
	conf    map[string]any
}

// call runs the plugin for one command. With a moment it is killed by SIGKILL then, unless it has ended before; cut says
// so. It returns once no process of the call lives any more: a plugin that it has called itself ends in its own time.
func (k *killed) call(command string, b *box, more map[string]any, moment <-chan time.Time) (out []byte, cut bool, err error) {
	conf := map[string]any{}
	for _, m := range []map[string]any{k.conf, more} {
		for key, v := range m {
			conf[key] = v
		}
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, false, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(k.plugin)
	cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_PATH=" + filepath.Dir(k.plugin) + ":" + k.plugins}
	if b != nil {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+b.rt.ContainerID, "CNI_NETNS="+b.rt.NetNS, "CNI_IFNAME=eth0")
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.node.NS.StartCmd(cmd); err != nil {
		return nil, false, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-moment:
		cmd.Process.Kill() // it may just have ended
		err = <-done
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		cut = true
		deadline := time.Now().Add(patience)
		for syscall.Kill(-cmd.Process.Pid, 0) == nil {
			if time.Now().After(deadline) {
				return nil, cut, errors.New("a process of a killed call lives on")
			}
			time.Sleep(time.Millisecond) // between looks at a condition
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s%s", command, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), cut, err
}

// TestPluginKilled kills the plugin with SIGKILL at random moments of ADD and DEL. What it answered stands, nothing else is
// left after GC, and no address belongs to two pods; also where another IPAM gives out the addresses. Debian's host-local
// does not know CNI 1.1 and so has no GC: with it DEL follows a killed call, as runtimes have it.
func TestPluginKilled(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "ip", "nft")
	buildPlugin(t)
	rounds := 10
	if os.Getenv("WEFT_TEST_LONG") != "" {
		rounds = 100
	}
	for _, ipam := range []string{"daemon", "host-local"} {
		t.Run(ipam, func(t *testing.T) { t.Parallel(); testPluginKilled(t, ipam, rounds) })
	}
}

func testPluginKilled(t *testing.T, ipam string, rounds int) {
	c := up(t, "vxlan", 4, nettest.ClusterOptions{})
	dir, version := references()
	k := &killed{c.install(c.Nodes[0], "--chain", ""), filepath.Join(c.path(c.Nodes[0], "bin"), "weft-cni"), dir, nil}
	collects := version == "1.1.0" || ipam == "daemon"
	k.conf = map[string]any{"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": c.path(k.node, "sock")}
	if ipam == "host-local" {
		data := t.TempDir()
		k.conf["ipam"] = map[string]any{"type": ipam, "dataDir": data, "ranges": []any{[]any{map[string]string{"subnet": "10.244.1.128/28"}}, []any{map[string]string{"subnet": "fd00:10:244:1:80::/112"}}}}
		k.dirs = append(k.dirs, data)
	}
	if !collects {
		k.conf["cniVersion"] = version
	}
	first := k.box("first")             // so that what stays for good is there before the count
	usual := map[string]time.Duration{} // what a command takes that is not killed, as last seen
	for _, command := range []string{"ADD", "DEL"} {
		start := time.Now()
		if _, _, err := k.call(command, first, nil, nil); err != nil {
			t.Fatal(err)
		}
		usual[command] = time.Since(start)
	}
	before := k.traces()
	client := api.NewClient(c.path(k.node, "sock"))
	defer client.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	const many = 4
	boxes := make([]*box, many)
	for i := range boxes {
		boxes[i] = k.box(fmt.Sprint("pod", i))
	}
	stands := map[*box][]byte{} // and what ADD has answered
	gc := func() {
		if !collects {
			for _, b := range boxes {
				if _, attached := stands[b]; attached {
					continue
				}
				if _, _, err := k.call("DEL", b, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			return
		}
		valid := []map[string]string{}
		for b := range stands {
			valid = append(valid, map[string]string{"containerID": b.rt.ContainerID, "ifname": "eth0"})
		}
		if _, _, err := k.call("GC", nil, map[string]any{"cni.dev/valid-attachments": valid}, nil); err != nil {
			t.Fatal(err)
		}
	}
	calls, cuts := 0, map[string]int{}
	for min(cuts["ADD"], cuts["DEL"]) < rounds/2 && calls < 100*rounds {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, b := range boxes {
			calls++
			command := "ADD"
			if _, attached := stands[b]; attached {
				command = "DEL"
			}
			var moment <-chan time.Time // of every other call, at random
			if rng.IntN(2) == 0 {
				moment = time.After(time.Duration(rng.Float64() * float64(usual[command])))
			}
			wg.Go(func() {
				start := time.Now()
				out, cut, err := k.call(command, b, nil, moment)
				mu.Lock()
				defer mu.Unlock()
				delete(stands, b) // nobody knows of a cut one: GC decides
				switch {
				case cut:
					cuts[command]++
				case err != nil:
					t.Error(err)
				default:
					usual[command] = time.Since(start)
					if command == "ADD" {
						stands[b] = out
					}
				}
			})
		}
		wg.Wait()
		gc()
		owner := map[netip.Addr]string{}
		for b, out := range stands {
			var result types100.Result
			if err := json.Unmarshal(out, &result); err != nil {
				t.Fatal(err)
			}
			for _, ip := range result.IPs {
				a, _ := netip.AddrFromSlice(ip.Address.IP)
				if o, twice := owner[a.Unmap()]; twice {
					t.Fatalf("%v belongs to %s and to %s", a, o, b.rt.ContainerID)
				}
				owner[a.Unmap()] = b.rt.ContainerID
			}
			if _, _, err := k.call("CHECK", b, map[string]any{"prevResult": json.RawMessage(out)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		pods, err := client.Pods(t.Context())
		if links := podLinks(t, k.node.NS); err != nil || len(pods) != len(stands) || links != len(stands) {
			t.Fatalf("%d stand; %d are listed, %d links, %v", len(stands), len(pods), links, err)
		}
		if t.Failed() {
			return
		}
	}
	stood := len(stands)
	clear(stands)
	gc()
	c.eventually("nothing is left", func() error { return k.clean(before) })
	after := map[bool]string{true: "GC", false: "DEL"}[collects]
	t.Logf("%s gives out addresses: %d calls, %d killed in ADD and %d in DEL; %d stood at the end; after %s nothing was left, no address was given twice",
		ipam, calls, cuts["ADD"], cuts["DEL"], stood, after)
	if min(cuts["ADD"], cuts["DEL"]) < rounds/2 {
		t.Error("too few calls were killed: the test showed nothing")
	}
}
