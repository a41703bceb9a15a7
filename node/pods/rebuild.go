package pods

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/api"
	"weft/control"
	"weft/hostnet"
	"weft/internal/ipnet"
)

// Damaged is what is put behind the name of a store that cannot be used.
const Damaged = ".damaged"

// resultCache is where runtimes keep what they know of attachments (libcni's default).
const resultCache = "/var/lib/cni/results"

// namespaceDirs are where runtimes keep network namespaces; those of processes come besides.
var namespaceDirs = []string{"/run/netns", "/var/run/netns", "/run/docker/netns"}

// unknown is the network of an attachment that lives, and of which nobody knows the name.
const unknown = "?"

// sound sets a store aside that cannot be used, and returns what can still be read of it. lost says that what pods there are is not in
// the store: it was set aside, or is not there.
func sound(file string, log *zap.Logger) (records []*record, lost bool, err error) {
	records, wrong := damage(file)
	if wrong == nil {
		_, err := os.Stat(file)
		return nil, errors.Is(err, fs.ErrNotExist), nil
	}
	if err := os.Rename(file, file+Damaged); err != nil {
		return nil, false, fmt.Errorf("pods: %s is damaged (%v), and cannot be set aside: %w", file, wrong, err)
	}
	log.Error("the list of pods is damaged: it is set aside, and made anew from the kernel and what runtimes know", zap.String("file", file),
		zap.String("aside", file+Damaged), zap.Error(wrong))
	return records, true, nil
}

// rebuild writes down the pods that live, whose links are here: as a record says that was read of the old store, else as the kernel has them, under
// the name that the runtime's cache has. One whose name nobody knows gets it when the runtime asks for it.
func (m *Manager) rebuild(records []*record) error {
	links, err := m.rt.LinkList()
	if err != nil {
		return fmt.Errorf("pods: list links: %w", err)
	}
	known := map[string]*record{}
	for _, r := range append(cached(cmp.Or(m.o.ResultCache, resultCache)), records...) { // the store's own word counts, the newest of it
		if have := known[hostName(r.key())]; have == nil || !r.Since.Before(have.Since) {
			known[hostName(r.key())] = r
		}
	}
	var errs []error
	var all []namespace
	for _, l := range links {
		is := l.Attrs()
		if !hostnet.PodLink(is.Name) {
			continue
		}
		if all == nil {
			all = m.namespaces()
		}
		r, err := m.living(is, known[is.Name], all)
		if err != nil {
			errs = append(errs, fmt.Errorf("pods: %s lives, but cannot be written down: %w", is.Name, err))
			continue
		}
		m.o.Log.Info("a pod that lives is written down again", zap.String("device", is.Name), zap.String("container", r.ContainerID), zap.Stringers("addresses", r.Addrs))
		errs = append(errs, m.store.restore(r))
	}
	return errors.Join(errs...)
}

// namespace is a network namespace that a path leads to.
type namespace struct {
	path  string
	inode uint64
	id    int // by which the kernel tells this namespace of it, -1 = it has none
}

// namespaces lists those that can be found.
func (m *Manager) namespaces() (list []namespace) {
	var paths []string
	for _, dir := range namespaceDirs {
		found, _ := filepath.Glob(filepath.Join(dir, "*"))
		paths = append(paths, found...)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	seen := map[uint64]bool{m.inode: true}
	for _, p := range append(paths, processes...) {
		ns, number, err := openNetns(p)
		if err != nil {
			continue
		}
		if !seen[number] {
			seen[number] = true
			if id, err := m.rt.GetNetNsIdByFd(int(ns)); err == nil {
				list = append(list, namespace{p, number, id})
			}
		}
		ns.Close()
	}
	return list
}

// living describes the pod behind a link as it is now. know is what somebody knows of it, nil = nothing.
func (m *Manager) living(near *netlink.LinkAttrs, know *record, all []namespace) (*record, error) {
	at := slices.IndexFunc(all, func(n namespace) bool { return n.id >= 0 && n.id == near.NetNsID })
	if know != nil && know.Result != nil && at >= 0 && know.Inode == all[at].inode {
		return know, nil
	}
	r := &record{Network: unknown, ContainerID: near.Name, IfName: "eth0", Link: near.Name, Since: time.Now().UTC()}
	if know != nil {
		r.Network, r.ContainerID, r.IfName, r.Link, r.PodNamespace, r.PodName = know.Network, know.ContainerID, know.IfName, "", know.PodNamespace, know.PodName
	}
	r.Bridged = near.MasterIndex != 0
	if at < 0 {
		return r, m.fromNode(r, near)
	}
	r.Netns, r.Inode = all[at].path, all[at].inode
	ns, _, err := openNetns(r.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter namespace %s: %w", r.Netns, err)
	}
	defer pod.Close()
	far, err := pod.LinkByIndex(near.ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("the pod's end: %w", err)
	}
	r.IfName, r.MAC = far.Attrs().Name, far.Attrs().HardwareAddr.String()
	result := api.AttachResult{HostInterface: near.Name, PodInterface: api.PodInterface{Name: r.IfName, MAC: r.MAC, Netns: r.Netns},
		IPs: []api.PodIP{}, Routes: []api.PodRoute{}, MTU: far.Attrs().MTU}
	addrs, err := pod.AddrList(far, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("the pod's addresses: %w", err)
	}
	for _, a := range addrs {
		ip := ipnet.Prefix(a.IPNet)
		if ip.Addr().IsLinkLocalUnicast() {
			continue
		}
		one := api.PodIP{Address: ip, Gateway: gatewayOf(ip.Addr())}
		if r.Bridged {
			one.Gateway = control.HostAddr(ip.Masked())
		}
		r.Addrs, result.IPs = append(r.Addrs, ip.Addr()), append(result.IPs, one)
		result.Routes = append(result.Routes, api.PodRoute{Dst: ipnet.Everything(ip.Addr()), Gateway: one.Gateway})
	}
	r.Result = &result
	return r, nil
}

// fromNode describes a pod whose namespace is not to be found, by what the node has of it.
func (m *Manager) fromNode(r *record, near *netlink.LinkAttrs) error {
	routes, err := m.rt.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: near.Index, Protocol: hostnet.Protocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	neighbors, err := m.rt.NeighList(near.Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	result := api.AttachResult{HostInterface: near.Name, IPs: []api.PodIP{}, Routes: []api.PodRoute{}, MTU: near.MTU}
	for _, route := range routes {
		if p := ipnet.Prefix(route.Dst); p.IsSingleIP() {
			r.Addrs, result.IPs = append(r.Addrs, p.Addr()), append(result.IPs, api.PodIP{Address: p, Gateway: gatewayOf(p.Addr())})
		}
	}
	for _, n := range neighbors {
		if n.State == netlink.NUD_PERMANENT && slices.Contains(r.Addrs, ipnet.Addr(n.IP)) {
			r.MAC = n.HardwareAddr.String()
		}
	}
	result.PodInterface = api.PodInterface{Name: r.IfName, MAC: r.MAC}
	r.Result = &result
	return nil
}

// cached reads the names of attachments from a runtime's cache (libcni, kind cniCacheV1). What cannot be read is not there.
func cached(dir string) (list []*record) {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var entry struct {
			Kind        string      `json:"kind"`
			ContainerID string      `json:"containerId"`
			IfName      string      `json:"ifName"`
			Network     string      `json:"networkName"`
			Args        [][2]string `json:"cniArgs"`
		}
		if json.Unmarshal(data, &entry) != nil || entry.ContainerID == "" || entry.IfName == "" || entry.Network == "" {
			continue
		}
		r := &record{Network: entry.Network, ContainerID: entry.ContainerID, IfName: entry.IfName}
		for _, a := range entry.Args {
			switch a[0] {
			case "K8S_POD_NAMESPACE":
				r.PodNamespace = a[1]
			case "K8S_POD_NAME":
				r.PodName = a[1]
			}
		}
		list = append(list, r)
	}
	return list
}

// find returns an attachment, nil where there is none. One that was written down without its name has it from now on. The caller holds its lock.
func (m *Manager) find(network, container, ifname string) (*record, error) {
	k := key(network, container, ifname)
	r, err := m.store.get(k)
	if r != nil || err != nil {
		return r, err
	}
	all, err := m.store.all()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Link != hostName(k) {
			continue
		}
		old := r.key()
		r.Network, r.ContainerID, r.IfName, r.Link = network, container, ifname, ""
		if err := m.store.rename(old, r); err != nil {
			return nil, err
		}
		m.planning.Lock()
		delete(m.held, old)
		m.held[k] = newAttachment(r, r.Result.MTU)
		m.planning.Unlock()
		return r, nil
	}
	return nil, nil
}
