package pods

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"weft/api"
	"weft/control"
	"weft/hostnet"
	"weft/internal/ipnet"
	"weft/internal/plainfile"
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
	var near []*netlink.LinkAttrs
	var prefixes []netip.Prefix // of the bridge
	for _, l := range links {
		switch is := l.Attrs(); {
		case is.Name == hostnet.Bridge:
			if prefixes, err = m.prefixesOf(l); err != nil {
				return err
			}
		case hostnet.PodLink(is.Name):
			near = append(near, is)
		}
	}
	if len(near) == 0 {
		return nil
	}
	all := m.namespaces()
	var errs []error
	var sure, claims []*record // a pod's own word counts behind all that the node knows
	for _, is := range near {
		r, vouched, err := m.living(is, known[is.Name], all, prefixes)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("pods: %s lives, but cannot be written down: %w", is.Name, err))
		case vouched:
			sure = append(sure, r)
		default:
			claims = append(claims, r)
		}
	}
	for _, r := range append(sure, claims...) {
		refused, err := m.store.restore(r)
		if len(refused) > 0 {
			m.o.Log.Error("a pod that lives has addresses that are another's, and does not keep them", zap.String("device", r.link()), zap.Stringers("addresses", refused))
		}
		m.o.Log.Info("a pod that lives is written down again", zap.String("device", r.link()), zap.String("container", r.ContainerID), zap.Stringers("addresses", r.Addrs))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// prefixesOf returns the prefixes of the bridge's addresses.
func (m *Manager) prefixesOf(bridge netlink.Link) (list []netip.Prefix, err error) {
	addrs, err := m.rt.AddrList(bridge, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("pods: list addresses of %s: %w", hostnet.Bridge, err)
	}
	for _, a := range addrs {
		if p := ipnet.Prefix(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			list = append(list, p.Masked())
		}
	}
	return list, nil
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

// living describes the pod behind a link as it is now. know is what somebody knows of it, nil = nothing. Who is root in a pod can give
// its interface whatever MAC and addresses, so these are what the node has of it, or the runtime; where neither has any, which is so only
// of a bridged pod whose packets are not checked, they are the pod's word: then vouched is false, and only addresses of the bridge count.
func (m *Manager) living(near *netlink.LinkAttrs, know *record, all []namespace, prefixes []netip.Prefix) (r *record, vouched bool, err error) {
	at := slices.IndexFunc(all, func(n namespace) bool { return n.id >= 0 && n.id == near.NetNsID })
	if know != nil && know.Result != nil && at >= 0 && know.Inode == all[at].inode {
		return know, true, nil
	}
	r = &record{Network: unknown, ContainerID: near.Name, IfName: "eth0", Link: near.Name, Since: time.Now().UTC()}
	if know != nil {
		r.Network, r.ContainerID, r.IfName, r.Link, r.PodNamespace, r.PodName = know.Network, know.ContainerID, know.IfName, "", know.PodNamespace, know.PodName
	}
	r.Bridged = near.MasterIndex != 0
	if err := m.fromNode(r, near); err != nil {
		return nil, false, err
	}
	if know != nil && len(r.Addrs) == 0 {
		r.Addrs = know.Addrs
	}
	if know != nil && r.MAC == "" {
		r.MAC = know.MAC
	}
	vouched = len(r.Addrs) > 0
	lengths := map[netip.Addr]int{}
	if at >= 0 {
		if err := m.fromPod(r, near, all[at], know == nil, prefixes, lengths); err != nil {
			return nil, false, err
		}
	}
	result := api.AttachResult{HostInterface: near.Name, PodInterface: api.PodInterface{Name: r.IfName, MAC: r.MAC, Netns: r.Netns},
		IPs: []api.PodIP{}, Routes: []api.PodRoute{}, MTU: near.MTU}
	for _, a := range r.Addrs {
		one := ipFor(a, prefixes, r.Bridged)
		if bits, ok := lengths[a]; ok && r.Bridged && !one.Gateway.IsValid() {
			one.Address = netip.PrefixFrom(a, bits)
			one.Gateway = control.HostAddr(one.Address.Masked())
		}
		result.IPs = append(result.IPs, one)
		if one.Gateway.IsValid() && at >= 0 {
			result.Routes = append(result.Routes, api.PodRoute{Dst: ipnet.Everything(a), Gateway: one.Gateway})
		}
	}
	r.Result = &result
	if r.MAC == "" {
		m.o.Log.Error("nobody knows the MAC of a pod that lives: what it sends is not checked until it is attached anew", zap.String("device", near.Name))
	}
	return r, vouched, nil
}

// fromPod adds what only the pod itself can tell, and what nobody else does. lengths are those of its addresses' prefixes.
func (m *Manager) fromPod(r *record, near *netlink.LinkAttrs, at namespace, nameless bool, prefixes []netip.Prefix, lengths map[netip.Addr]int) error {
	r.Netns, r.Inode = at.path, at.inode
	pod, err := podNetlink(r.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	far, err := pod.LinkByIndex(near.ParentIndex)
	if err != nil {
		return fmt.Errorf("the pod's end: %w", err)
	}
	if nameless {
		r.IfName = far.Attrs().Name
	}
	if r.MAC == "" {
		r.MAC = far.Attrs().HardwareAddr.String()
	}
	addrs, err := pod.AddrList(far, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("the pod's addresses: %w", err)
	}
	claims := len(r.Addrs) == 0 && r.Bridged
	for _, a := range addrs {
		ip := ipnet.Prefix(a.IPNet)
		lengths[ip.Addr()] = ip.Bits()
		if claims && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return usable(p, ip.Addr()) }) {
			r.Addrs = append(r.Addrs, ip.Addr())
		}
	}
	return nil
}

// fromNode adds the addresses and the MAC that the node itself gave a pod: its routes and neighbours of them, and the check on its link.
func (m *Manager) fromNode(r *record, near *netlink.LinkAttrs) error {
	routes, err := m.rt.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: near.Index, Protocol: hostnet.Protocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	neighbors, err := m.rt.NeighList(near.Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	mac, addrs := m.checked(near.Name)
	for _, route := range routes {
		if p := ipnet.Prefix(route.Dst); p.IsSingleIP() {
			addrs = append(addrs, p.Addr())
		}
	}
	for _, n := range neighbors {
		if ip := ipnet.Addr(n.IP); n.State == netlink.NUD_PERMANENT && len(n.HardwareAddr) == 6 && ip.IsGlobalUnicast() {
			mac, addrs = n.HardwareAddr, append(addrs, ip)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare) // IPv4 first
	r.Addrs, r.MAC = slices.Compact(addrs), mac.String()
	return nil
}

// cached reads the names, addresses and MACs of attachments from a runtime's cache (libcni, kind cniCacheV1). What cannot be read is not there.
func cached(dir string) (list []*record) {
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		data, err := plainfile.Read(f, plainfile.Most)
		if err != nil {
			continue
		}
		var entry struct {
			Kind        string      `json:"kind"`
			ContainerID string      `json:"containerId"`
			IfName      string      `json:"ifName"`
			Network     string      `json:"networkName"`
			Args        [][2]string `json:"cniArgs"`
			Result      struct {
				Interfaces []struct {
					Name    string `json:"name"`
					MAC     string `json:"mac"`
					Sandbox string `json:"sandbox"`
				} `json:"interfaces"`
				IPs []struct {
					Address string `json:"address"`
				} `json:"ips"`
			} `json:"result"`
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
		for _, ip := range entry.Result.IPs {
			if p, err := netip.ParsePrefix(ip.Address); err == nil {
				r.Addrs = append(r.Addrs, p.Addr())
			}
		}
		for _, i := range entry.Result.Interfaces {
			if i.Sandbox != "" && i.Name == entry.IfName { // the pod's end
				r.MAC = i.MAC
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
		m.index()
		m.planning.Unlock()
		return r, nil
	}
	return nil, nil
}
