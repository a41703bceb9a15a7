package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"weft/internal/netlab"
)

// Namespace is a network namespace and one OS thread that lives in it. Everything that must happen inside runs on
// that thread (Do, Start): its CPU affinity and its own view of /sys are what the children inherit.
type Namespace struct {
	*netlab.NS

	thread    *netlab.Thread
	processes []*Process
}

// newNamespace makes the namespace weftlab-<pid>-<label> with its loopback up. cpus is where its processes may run;
// empty means anywhere.
func newNamespace(label string, cpus []int) (_ *Namespace, err error) {
	ns := &Namespace{}
	if ns.NS, err = netlab.Create(namePrefix, label); err != nil {
		return nil, fmt.Errorf("testbed: %w", err)
	}
	if ns.thread, err = ns.NS.Thread(cpus); err != nil {
		return nil, errors.Join(fmt.Errorf("testbed: %w", err), ns.NS.Close())
	}
	for _, s := range settings() {
		if err := ns.Sysctl(s[0], s[1]); err != nil {
			return nil, errors.Join(err, ns.close())
		}
	}
	return ns, nil
}

// settings are the sysctls of every namespace.
func settings() [][2]string {
	list := [][2]string{{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"}}
	if HasIPv6() {
		list = append(list, [][2]string{
			// Where the machine starts devices without IPv6, ours have it.
			{"net/ipv6/conf/all/disable_ipv6", "0"}, {"net/ipv6/conf/default/disable_ipv6", "0"},
			// Addresses are usable at once, and no router is looked for: the lab counts packets.
			{"net/ipv6/conf/all/accept_dad", "0"}, {"net/ipv6/conf/default/accept_dad", "0"},
			{"net/ipv6/conf/default/router_solicitations", "0"},
		}...)
	}
	return list
}

// Do runs f on the namespace's thread. A panic in f is raised in the caller, so that the caller's
// deferred clean-up runs.
func (ns *Namespace) Do(f func() error) error { return ns.thread.Do(f) }

// Sysctl writes one setting of the namespace; name is a path below /proc/sys.
func (ns *Namespace) Sysctl(name, value string) error {
	return ns.Do(func() error {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("testbed: set %s=%s in %s: %w", name, value, ns.Name(), err)
		}
		return nil
	})
}

// SetUp sets a device up.
func (ns *Namespace) SetUp(device string) error { return ns.LinkUp(device) }

// Route adds a route through device; gw is the next hop, the zero Addr for a prefix on the link.
func (ns *Namespace) Route(to netip.Prefix, device string, gw netip.Addr) error {
	return ns.AddRoute(to, gw, device)
}

// steer makes cpus do the receive work of a device (RPS, Documentation/networking/scaling.rst).
func (ns *Namespace) steer(device string, cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	return ns.Do(func() error {
		queues := "/sys/class/net/" + device + "/queues"
		entries, err := os.ReadDir(queues)
		if err != nil {
			return fmt.Errorf("testbed: steer %s: %w", device, err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "rx-") {
				continue
			}
			if err := os.WriteFile(queues+"/"+e.Name()+"/rps_cpus", []byte(cpuMask(cpus)), 0); err != nil {
				return fmt.Errorf("testbed: steer %s: %w", device, err)
			}
		}
		return nil
	})
}

// cpuMask writes cpus as the kernel reads bitmaps: hexadecimal words of 32 bits, highest first.
func cpuMask(cpus []int) string {
	highest := 0
	for _, c := range cpus {
		highest = max(highest, c)
	}
	words := make([]uint32, highest/32+1)
	for _, c := range cpus {
		words[c/32] |= 1 << (c % 32)
	}
	text := strconv.FormatUint(uint64(words[len(words)-1]), 16)
	for i := len(words) - 2; i >= 0; i-- {
		text += fmt.Sprintf(",%08x", words[i])
	}
	return text
}

// stop ends the processes that were started inside, the newest first.
func (ns *Namespace) stop() {
	for _, p := range slices.Backward(ns.processes) {
		p.Stop(context.Background())
	}
	ns.processes = nil
}

// close removes the namespace.
func (ns *Namespace) close() error {
	ns.thread.Close()
	return ns.NS.Close()
}
