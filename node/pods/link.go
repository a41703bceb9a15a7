package pods

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/api"
	"weft/control"
	"weft/hostnet"
	"weft/internal/ipnet"
)

// gateway4 and gateway6 are where routed pods send everything: the node's end of their link, the same for all pods.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// minMTU4 and minMTU6 are the smallest MTUs of the families (RFC 791, RFC 8200 §5).
const (
	minMTU4 = 68
	minMTU6 = 1280
)

func gatewayOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return gateway4
	}
	return gateway6
}

// inode tells namespaces apart. The path may be a link to one, in /proc or /run/netns.
func inode(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("pods: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("pods: %s has no inode", path)
	}
	return st.Ino, nil
}

// openNetns opens a network namespace. One that is not there is CodeNoNetns, and so is a file that is none.
func openNetns(path string) (netns.NsHandle, uint64, error) {
	if path == "" {
		return -1, 0, coded(api.CodeInvalid, "no network namespace is named")
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return -1, 0, coded(api.CodeFailed, "open namespace %s: %v: the daemon needs CAP_SYS_PTRACE for other processes' namespaces", path, err)
		}
		return -1, 0, coded(api.CodeNoNetns, "open namespace %s: %v", path, err)
	}
	ns := netns.NsHandle(fd)
	// NS_GET_NSTYPE of ioctl_ns(2) says what kind of namespace a file is.
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		ns.Close()
		return -1, 0, coded(api.CodeNoNetns, "%s is no network namespace", path)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		ns.Close()
		return -1, 0, fmt.Errorf("pods: namespace %s: %w", path, err)
	}
	return ns, st.Ino, nil
}

// understand checks a request before anything is done.
func (m *Manager) understand(q api.AttachRequest, n Node) (asked []netip.Addr, mac net.HardwareAddr, err error) {
	if err := wrongName(q.Network, q.ContainerID, q.IfName); err != nil {
		return nil, nil, err
	}
	if err := ready(n); err != nil {
		return nil, nil, err
	}
	if q.MAC != "" {
		mac, err = net.ParseMAC(q.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Max(mac) == 0 {
			return nil, nil, coded(api.CodeInvalid, "%q is not a MAC address that an interface can have", q.MAC)
		}
	} else {
		mac = randomMAC()
	}
	families := map[bool]bool{} // by: is it IPv6
	take := func(a netip.Addr) error {
		if !a.IsValid() || a.Is4In6() || !a.IsGlobalUnicast() || a.Zone() != "" {
			return coded(api.CodeInvalid, "%v is not an address that a pod can have", a)
		}
		if families[a.Is6()] && !(len(q.Delegated) > 0) {
			return coded(api.CodeInvalid, "two addresses of one family are asked for: ask for one of each")
		}
		families[a.Is6()] = true
		return nil
	}
	for _, p := range q.IPs {
		if err := take(p.Addr()); err != nil {
			return nil, nil, err
		}
		asked = append(asked, p.Addr())
	}
	for _, d := range q.Delegated {
		if len(q.IPs) > 0 {
			return nil, nil, coded(api.CodeInvalid, "addresses are asked for, and other ones are given by another IPAM: use one of both")
		}
		if err := take(d.Address.Addr()); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range n.Prefixes {
		families[p.Addr().Is6()] = true
	}
	least := minMTU4
	if families[true] {
		least = minMTU6
	}
	if q.MTU != 0 && (q.MTU < least || q.MTU > n.MTU) {
		return nil, nil, coded(api.CodeInvalid, "MTU %d: this node carries packets of %d to %d bytes", q.MTU, least, n.MTU)
	}
	for _, p := range q.Routes {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, nil, coded(api.CodeInvalid, "%v is not a prefix to route", p)
		}
	}
	return asked, mac, nil
}

// randomMAC is a unicast, locally administered address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^1 | 2
	return mac
}

// connect puts an attachment in force, on the node and in the pod. On an error the caller takes back what is there.
func (m *Manager) connect(r *record, q api.AttachRequest, n Node, ns netns.NsHandle) (api.AttachResult, error) {
	name := r.link()
	result := api.AttachResult{HostInterface: name, PodInterface: api.PodInterface{Name: r.IfName, MAC: r.MAC, Netns: r.Netns},
		IPs: []api.PodIP{}, Routes: []api.PodRoute{}, MTU: n.MTU}
	if q.MTU != 0 {
		result.MTU = q.MTU
	}
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return api.AttachResult{}, fmt.Errorf("pods: enter namespace %s: %w", r.Netns, err)
	}
	defer pod.Close()
	if _, err := pod.LinkByName(r.IfName); err == nil {
		return api.AttachResult{}, coded(api.CodeExists, "there is an interface %s in %s already", r.IfName, r.Netns)
	}
	if err := m.discard(name); err != nil { // nobody's: the store does not know it
		return api.AttachResult{}, err
	}
	if err := m.hold(newAttachment(r, result.MTU)); err != nil {
		return api.AttachResult{}, err
	}
	for i, a := range r.Addrs {
		ip := ipFor(a, n.Prefixes, r.Bridged)
		if r.Delegated {
			ip.Address = q.Delegated[i].Address
			if g := q.Delegated[i].Gateway; g.IsValid() && r.Bridged {
				ip.Gateway = g
			}
			if !r.Bridged {
				ip = api.PodIP{Address: ipnet.Host(a), Gateway: gatewayOf(a)}
			}
		}
		result.IPs = append(result.IPs, ip)
		if r.Bridged && !ip.Gateway.IsValid() {
			continue
		}
		dsts := []netip.Prefix{ipnet.Everything(a)}
		for _, p := range q.Routes {
			if p.Addr().Is4() == a.Is4() && p.Bits() > 0 {
				dsts = append(dsts, p.Masked())
			}
		}
		for _, dst := range dsts {
			if !slices.ContainsFunc(result.Routes, func(have api.PodRoute) bool { return have.Dst == dst }) {
				result.Routes = append(result.Routes, api.PodRoute{Dst: dst, Gateway: ip.Gateway})
			}
		}
	}
	near, err := m.rt.LinkByName(name)
	if err != nil {
		return api.AttachResult{}, fmt.Errorf("pods: look up %s: %w", name, err)
	}
	if err := furnish(pod, ns, r, &result, near.Attrs().HardwareAddr); err != nil {
		return api.AttachResult{}, err
	}
	m.furnished(r.key(), near.Attrs().Index)
	return result, nil
}

// genModeEUI64 is the IPv6 address generation mode by MAC (IN6_ADDR_GEN_MODE_EUI64, linux/if_link.h).
const genModeEUI64 = 0

// ip6PrefixMetric is what the kernel gives the route that comes with an IPv6 address (IP6_RT_PRIO_ADDRCONF).
const ip6PrefixMetric = 256

// furnish sets up the pod's end of a link, or what of it is missing. A pod with several networks keeps the routes that it has: those
// are taken out of the result.
func furnish(pod *netlink.Handle, ns netns.NsHandle, r *record, result *api.AttachResult, gateway net.HardwareAddr) error {
	fail := func(what string, err error) error { return fmt.Errorf("pods: %s: %w", what, err) }
	far, err := pod.LinkByName(r.IfName)
	if err != nil {
		return fail("look up "+r.IfName+" in the pod", err)
	}
	if slices.ContainsFunc(r.Addrs, netip.Addr.Is6) {
		if err := allowIPv6(ns, r.IfName); err != nil {
			return fail("turn on IPv6 in the pod", err)
		}
	}
	// Its link-local address is to follow from its MAC, as the check on the link has it. Without IPv6 there is none.
	_ = pod.LinkSetIP6AddrGenMode(far, genModeEUI64)
	if far.Attrs().MTU != result.MTU {
		if err := pod.LinkSetMTU(far, result.MTU); err != nil {
			return fail("set the MTU of the pod's interface", err)
		}
	}
	if err := pod.LinkSetUp(far); err != nil {
		return fail("set up the pod's interface", err)
	}
	for _, ip := range result.IPs {
		if err := setAddress(pod, far, ip); err != nil && !errors.Is(err, unix.EEXIST) {
			return fail(fmt.Sprintf("give the pod %s", ip.Address), err)
		}
		if r.Bridged {
			// The kernel makes this route with the address; somebody may have removed the route alone.
			link := &netlink.Route{LinkIndex: far.Attrs().Index, Dst: ipnet.Of(ip.Address.Masked()), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_KERNEL}
			if ip.Address.Addr().Is4() {
				link.Src = ip.Address.Addr().AsSlice()
			} else {
				link.Priority = ip6PrefixMetric
			}
			if err := pod.RouteAdd(link); err != nil && !errors.Is(err, unix.EEXIST) && !ip.Address.IsSingleIP() {
				return fail(fmt.Sprintf("lead the pod to its link's %s", ip.Address.Masked()), err)
			}
			continue
		}
		gw := &netlink.Neigh{LinkIndex: far.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.Gateway.AsSlice(), HardwareAddr: gateway}
		route := &netlink.Route{LinkIndex: far.Attrs().Index, Dst: ipnet.Of(ipnet.Host(ip.Gateway)), Scope: netlink.SCOPE_LINK}
		if err := errors.Join(pod.NeighSet(gw), pod.RouteReplace(route)); err != nil {
			return fail(fmt.Sprintf("lead the pod to %s", ip.Gateway), err)
		}
	}
	routes := []api.PodRoute{}
	for _, route := range result.Routes {
		err := pod.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: ipnet.Of(route.Dst), Gw: route.Gateway.AsSlice()})
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return fail(fmt.Sprintf("lead the pod's %s to %s", route.Dst, route.Gateway), err)
		}
		routes = append(routes, route)
	}
	result.Routes = routes
	return nil
}

// ipFor is an address of the node's prefixes as a pod has it.
func ipFor(a netip.Addr, prefixes []netip.Prefix, bridged bool) api.PodIP {
	if !bridged {
		return api.PodIP{Address: ipnet.Host(a), Gateway: gatewayOf(a)}
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return api.PodIP{Address: netip.PrefixFrom(a, p.Bits()), Gateway: control.HostAddr(p)}
		}
	}
	return api.PodIP{Address: ipnet.Host(a)}
}

func hostRoute(index int, a netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Dst: ipnet.Of(ipnet.Host(a)), Protocol: hostnet.Protocol}
}

// setAddress puts an address on the pod's interface, usable at once: duplicates are impossible, the store gives each
// address once.
func setAddress(pod *netlink.Handle, far netlink.Link, ip api.PodIP) error {
	a := &netlink.Addr{IPNet: ipnet.Of(ip.Address)}
	if ip.Address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return pod.AddrAdd(far, a)
}

// allowIPv6 turns IPv6 on for a pod's interface: some runtimes make namespaces without.
func allowIPv6(ns netns.NsHandle, ifname string) error {
	return hostnet.Within(ns, func() error {
		dir := "/proc/thread-self/root/proc/sys/net/ipv6/conf/" + ifname + "/"
		b, err := os.ReadFile(dir + "disable_ipv6")
		if err != nil || strings.TrimSpace(string(b)) == "0" {
			return err
		}
		return os.WriteFile(dir+"disable_ipv6", []byte("0"), 0)
	})
}

// podLinks are the names of all links of pods.
func (m *Manager) podLinks() (names []string, err error) {
	links, err := m.rt.LinkList()
	if err != nil {
		return nil, fmt.Errorf("pods: list links: %w", err)
	}
	for _, l := range links {
		if hostnet.PodLink(l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// refurnish sets up pods' ends again that are not as they were: those of links that the Host has made anew, those that are down, those
// in which something has happened, and, where all is set, any.
func (m *Manager) refurnish(all bool) error {
	links, err := m.rt.LinkList()
	if err != nil {
		return fmt.Errorf("pods: list links: %w", err)
	}
	near := map[string]*netlink.LinkAttrs{}
	for _, l := range links {
		if hostnet.PodLink(l.Attrs().Name) {
			near[l.Attrs().Name] = l.Attrs()
		}
	}
	var errs []error
	suspects := m.suspected()
	for _, a := range m.attached() {
		is := near[a.link()]
		if is == nil {
			continue // the Host says why
		}
		if all || suspects[a.key()] || is.Index != a.furnish || is.RawFlags&unix.IFF_RUNNING == 0 {
			errs = append(errs, m.refurnishOne(a.key(), is))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) refurnishOne(k string, near *netlink.LinkAttrs) error {
	defer m.lock(k)()
	r, err := m.store.get(k)
	if err != nil || r == nil || r.Result == nil {
		return err
	}
	ns, number, err := openNetns(r.Netns)
	if err != nil || number != r.Inode {
		return nil // gone; sweep sees to it
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("pods: enter namespace %s: %w", r.Netns, err)
	}
	defer pod.Close()
	if wrong := verifyPod(pod, r, near); wrong != nil {
		m.o.Log.Warn("repaired", zap.String("device", near.Name), zap.String("reason", wrong.Error()))
		if err := furnish(pod, ns, r, r.Result, near.HardwareAddr); err != nil {
			return err
		}
	}
	m.furnished(k, near.Index)
	return nil
}

// verifyNear compares the node's part of an attachment with the kernel.
func (m *Manager) verifyNear(r *record, near netlink.Link) error {
	is := near.Attrs()
	if is.Flags&net.FlagUp == 0 {
		return coded(api.CodeMismatch, "%s is down", is.Name)
	}
	if r.Bridged {
		bridge, err := m.rt.LinkByName(hostnet.Bridge)
		if err != nil || is.MasterIndex != bridge.Attrs().Index {
			return coded(api.CodeMismatch, "%s is not a port of %s", is.Name, hostnet.Bridge)
		}
		return nil
	}
	for _, a := range r.Addrs {
		family := netlink.FAMILY_V4
		if a.Is6() {
			family = netlink.FAMILY_V6
		}
		want := hostRoute(is.Index, a)
		routes, err := m.rt.RouteListFiltered(family, want, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("pods: list routes: %w", err)
		}
		if len(routes) == 0 {
			return coded(api.CodeMismatch, "the node's route to %s is gone", a)
		}
	}
	return nil
}

// podNetlink opens netlink in a pod's namespace; close the handle.
func podNetlink(path string) (*netlink.Handle, error) {
	ns, _, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close() // the sockets stay in it
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("pods: enter namespace %s: %w", path, err)
	}
	return pod, nil
}

// verify compares an attachment with the kernel, on the node and in the pod.
func (m *Manager) verify(r *record) error {
	name := r.link()
	near, err := m.rt.LinkByName(name)
	if err != nil {
		return coded(api.CodeMismatch, "the node's end %s of the link: %v", name, err)
	}
	if err := m.verifyNear(r, near); err != nil {
		return err
	}
	pod, err := podNetlink(r.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	return verifyPod(pod, r, near.Attrs())
}

// verifyPod compares the pod's end of an attachment.
func verifyPod(pod *netlink.Handle, r *record, near *netlink.LinkAttrs) error {
	far, err := pod.LinkByName(r.IfName)
	if err != nil {
		return coded(api.CodeMismatch, "interface %s in the pod: %v", r.IfName, err)
	}
	is := far.Attrs()
	switch {
	case near.ParentIndex != is.Index || is.ParentIndex != near.Index:
		return coded(api.CodeMismatch, "interface %s in the pod is not the other end of %s", r.IfName, near.Name)
	case is.HardwareAddr.String() != r.MAC:
		return coded(api.CodeMismatch, "interface %s has MAC %s, not %s", r.IfName, is.HardwareAddr, r.MAC)
	case is.MTU != r.Result.MTU:
		return coded(api.CodeMismatch, "interface %s has MTU %d, not %d", r.IfName, is.MTU, r.Result.MTU)
	case is.Flags&net.FlagUp == 0:
		return coded(api.CodeMismatch, "interface %s is down", r.IfName)
	}
	addrs, err := pod.AddrList(far, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("pods: list the pod's addresses: %w", err)
	}
	for _, ip := range r.Result.IPs {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == ip.Address.String() }) {
			return coded(api.CodeMismatch, "interface %s does not have %s", r.IfName, ip.Address)
		}
	}
	routes, err := pod.RouteList(far, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("pods: list the pod's routes: %w", err)
	}
	for _, want := range podRoutes(r) {
		if !slices.ContainsFunc(routes, func(k netlink.Route) bool {
			dst := ipnet.Everything(want.Dst.Addr())
			if k.Dst != nil {
				dst = ipnet.Prefix(k.Dst)
			}
			return dst == want.Dst && ipnet.Addr(k.Gw).Unmap() == want.Gateway
		}) {
			return coded(api.CodeMismatch, "the pod's route to %s is gone", want.Dst)
		}
	}
	if r.Bridged {
		return nil
	}
	neighbors, err := pod.NeighList(is.Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("pods: list the pod's neighbours: %w", err)
	}
	for _, ip := range r.Result.IPs {
		if !slices.ContainsFunc(neighbors, func(k netlink.Neigh) bool {
			return ipnet.Addr(k.IP) == ip.Gateway && k.State&netlink.NUD_PERMANENT != 0 && slices.Equal(k.HardwareAddr, near.HardwareAddr)
		}) {
			return coded(api.CodeMismatch, "the pod does not know the MAC of %s", ip.Gateway)
		}
	}
	return nil
}

// podRoutes are all routes of a pod that furnish sets up: those of the result, and those by which its gateways are on the link.
func podRoutes(r *record) []api.PodRoute {
	list := slices.Clone(r.Result.Routes)
	for _, ip := range r.Result.IPs {
		switch {
		case !r.Bridged:
			list = append(list, api.PodRoute{Dst: ipnet.Host(ip.Gateway)})
		case !ip.Address.IsSingleIP():
			list = append(list, api.PodRoute{Dst: ip.Address.Masked()})
		}
	}
	return list
}
