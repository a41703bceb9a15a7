package pods

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/control"
	"weft/internal/api"
	"weft/internal/hostnet"
)

// BridgeName is the bridge of the style bridge.
const BridgeName = "weftbr0"

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

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
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

// connect puts an attachment into the kernel. On an error the caller takes back what is there.
func (m *Manager) connect(r *record, q api.AttachRequest, n Node, ns netns.NsHandle, mac net.HardwareAddr) (api.AttachResult, error) {
	name := hostName(r.key())
	result := api.AttachResult{HostInterface: name, PodInterface: api.PodInterface{Name: r.IfName, MAC: r.MAC, Netns: r.Netns},
		IPs: []api.PodIP{}, Routes: []api.PodRoute{}, MTU: n.MTU}
	if q.MTU != 0 {
		result.MTU = q.MTU
	}
	fail := func(what string, err error) (api.AttachResult, error) {
		return api.AttachResult{}, fmt.Errorf("pods: %s: %w", what, err)
	}
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fail("enter namespace "+r.Netns, err)
	}
	defer pod.Close()
	if _, err := pod.LinkByName(r.IfName); err == nil {
		return api.AttachResult{}, coded(api.CodeExists, "there is an interface %s in %s already", r.IfName, r.Netns)
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: result.MTU, HardwareAddr: randomMAC()},
		PeerName:  r.IfName, PeerNamespace: netlink.NsFd(int(ns)), PeerHardwareAddr: mac, PeerMTU: uint32(result.MTU),
	}
	if err := m.removeLink(name); err != nil { // nobody's: the store does not know it
		return api.AttachResult{}, err
	}
	if err := m.rt.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return api.AttachResult{}, coded(api.CodeExists, "there is an interface %s in %s already", r.IfName, r.Netns)
		}
		return fail("make the link", err)
	}
	near, err := m.rt.LinkByName(name)
	if err != nil {
		return fail("look up "+name, err)
	}
	far, err := pod.LinkByName(r.IfName)
	if err != nil {
		return fail("look up "+r.IfName+" in the pod", err)
	}
	for _, a := range r.Addrs {
		if a.Is6() {
			if err := allowIPv6(ns, r.IfName); err != nil {
				return fail("turn on IPv6 in the pod", err)
			}
			break
		}
	}
	if err := m.setNear(r, near); err != nil {
		return fail("set up "+name, err)
	}
	if err := pod.LinkSetUp(far); err != nil {
		return fail("set up the pod's interface", err)
	}
	for i, a := range r.Addrs {
		ip := ipFor(a, n.Prefixes, r.Bridged)
		if r.Delegated {
			ip.Address = q.Delegated[i].Address
			if g := q.Delegated[i].Gateway; g.IsValid() && r.Bridged {
				ip.Gateway = g
			}
			if !r.Bridged {
				ip = api.PodIP{Address: host(a), Gateway: gatewayOf(a)}
			}
		}
		if err := setAddress(pod, far, ip); err != nil {
			return fail(fmt.Sprintf("give the pod %s", ip.Address), err)
		}
		result.IPs = append(result.IPs, ip)
		if r.Bridged && !ip.Gateway.IsValid() {
			continue
		}
		if !r.Bridged {
			gw := &netlink.Neigh{LinkIndex: far.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.Gateway.AsSlice(), HardwareAddr: near.Attrs().HardwareAddr}
			route := &netlink.Route{LinkIndex: far.Attrs().Index, Dst: ipNet(host(ip.Gateway)), Scope: netlink.SCOPE_LINK}
			err := m.rt.RouteAdd(hostRoute(near.Attrs().Index, a)) // never over somebody else's
			if errors.Is(err, unix.EEXIST) {
				return api.AttachResult{}, coded(api.CodeExists, "the node has a route to %s that is not weft's: remove it, or what has the address", a)
			}
			if err := errors.Join(err, pod.NeighSet(gw), pod.RouteReplace(route), m.setHost(near, a, mac)); err != nil {
				return fail(fmt.Sprintf("lead to and from %s", a), err)
			}
		}
		dsts := []netip.Prefix{everything(a)}
		for _, p := range q.Routes {
			if p.Addr().Is4() == a.Is4() && p.Bits() > 0 {
				dsts = append(dsts, p.Masked())
			}
		}
		for _, dst := range dsts {
			if slices.ContainsFunc(result.Routes, func(have api.PodRoute) bool { return have.Dst == dst }) {
				continue
			}
			// A pod with several networks keeps the route that it has.
			err := pod.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: ipNet(dst), Gw: ip.Gateway.AsSlice()})
			if errors.Is(err, unix.EEXIST) {
				continue
			}
			if err != nil {
				return fail(fmt.Sprintf("lead the pod's %s to %s", dst, ip.Gateway), err)
			}
			result.Routes = append(result.Routes, api.PodRoute{Dst: dst, Gateway: ip.Gateway})
		}
	}
	return result, nil
}

// ipFor is an address of the node's prefixes as a pod has it.
func ipFor(a netip.Addr, prefixes []netip.Prefix, bridged bool) api.PodIP {
	if !bridged {
		return api.PodIP{Address: host(a), Gateway: gatewayOf(a)}
	}
	for _, p := range prefixes {
		if p.Contains(a) {
			return api.PodIP{Address: netip.PrefixFrom(a, p.Bits()), Gateway: control.HostAddr(p)}
		}
	}
	return api.PodIP{Address: host(a)}
}

// setNear sets up the node's end.
func (m *Manager) setNear(r *record, near netlink.Link) error {
	// No address by itself: fe80::1 is enough, and the bridge's ports need none.
	if err := m.rt.LinkSetIP6AddrGenMode(near, 1); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	if r.Bridged {
		bridge, err := m.rt.LinkByName(BridgeName)
		if err != nil {
			return err
		}
		if err := m.rt.LinkSetMaster(near, bridge); err != nil {
			return err
		}
		if err := m.rt.LinkSetHairpin(near, true); err != nil {
			return err
		}
		return m.rt.LinkSetUp(near)
	}
	if err := m.rt.LinkSetUp(near); err != nil {
		return err
	}
	for _, a := range r.Addrs {
		if err := m.rt.AddrReplace(near, &netlink.Addr{IPNet: ipNet(host(gatewayOf(a))), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return nil
}

// setHost gives the node the way to a routed pod's address.
func (m *Manager) setHost(near netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	route := hostRoute(near.Attrs().Index, a)
	return errors.Join(m.rt.RouteReplace(route), m.rt.NeighSet(&netlink.Neigh{
		LinkIndex: near.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}))
}

func hostRoute(index int, a netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: ipNet(host(a)), Protocol: hostnet.Protocol}
	if a.Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// setAddress puts an address on the pod's interface, usable at once: duplicates are impossible, the store gives each
// address once.
func setAddress(pod *netlink.Handle, far netlink.Link, ip api.PodIP) error {
	a := &netlink.Addr{IPNet: ipNet(ip.Address)}
	if ip.Address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return pod.AddrAdd(far, a)
}

// allowIPv6 turns IPv6 on for a pod's interface: some runtimes make namespaces without.
func allowIPv6(ns netns.NsHandle, ifname string) error {
	return inside(ns, func() error {
		dir := "/proc/thread-self/root/proc/sys/net/ipv6/conf/" + ifname + "/"
		b, err := os.ReadFile(dir + "disable_ipv6")
		if err != nil || strings.TrimSpace(string(b)) == "0" {
			return err
		}
		return os.WriteFile(dir+"disable_ipv6", []byte("0"), 0)
	})
}

// inside runs fn on a thread in the namespace. The thread ends with it, so that it need not be brought back.
func inside(ns netns.NsHandle, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// bridge makes the bridge with the node's addresses, or what of it is missing.
func (m *Manager) bridge(n Node) (netlink.Link, error) {
	fail := func(err error) (netlink.Link, error) { return nil, fmt.Errorf("pods: bridge %s: %w", BridgeName, err) }
	link, err := m.rt.LinkByName(BridgeName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		// A MAC of its own: otherwise it takes the lowest of its ports', and pods' neighbour tables go stale.
		err = m.rt.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: BridgeName, MTU: n.MTU, HardwareAddr: randomMAC()}})
		if err != nil {
			return fail(err)
		}
		link, err = m.rt.LinkByName(BridgeName)
	}
	if err != nil {
		return fail(err)
	}
	if link.Attrs().MTU != n.MTU {
		if err := m.rt.LinkSetMTU(link, n.MTU); err != nil {
			return fail(err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := m.rt.LinkSetUp(link); err != nil {
			return fail(err)
		}
	}
	have, err := m.rt.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fail(err)
	}
	want := map[string]bool{}
	for _, p := range n.Prefixes {
		a := netip.PrefixFrom(control.HostAddr(p), p.Bits())
		want[a.String()] = true
		if slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IPNet.String() == a.String() }) {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := m.rt.AddrReplace(link, addr); err != nil {
			return fail(err)
		}
	}
	for _, h := range have { // of a prefix that the node had before
		if !want[h.IPNet.String()] && !h.IP.IsLinkLocalUnicast() {
			if err := m.rt.AddrDel(link, &h); err != nil {
				return fail(err)
			}
		}
	}
	return link, nil
}

// removeLink removes the node's end of an attachment, and with it the pod's end and all that hangs on both.
func (m *Manager) removeLink(name string) error {
	link, err := m.rt.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = m.rt.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("pods: remove link %s: %w", name, err)
	}
	return nil
}

// podLinks are the names of all links of pods.
func (m *Manager) podLinks() (names []string, err error) {
	links, err := m.rt.LinkList()
	if err != nil {
		return nil, fmt.Errorf("pods: list links: %w", err)
	}
	for _, l := range links {
		if podLink(l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// repair puts back what the node needs of every attachment besides its link. A link that is gone cannot be put back:
// the pod's end went with it.
func (m *Manager) repair() error {
	all, err := m.store.all()
	errs := []error{err}
	for _, r := range all {
		if r.Result != nil {
			errs = append(errs, m.repairOne(r.key()))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) repairOne(k string) error {
	defer m.lock(k)()
	r, err := m.store.get(k)
	if err != nil || r == nil || r.Result == nil {
		return err
	}
	near, err := m.rt.LinkByName(hostName(k))
	if err != nil || m.verifyNear(r, near) == nil {
		return nil // gone; CHECK says so
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil {
		return fmt.Errorf("pods: %w", err)
	}
	err = m.setNear(r, near)
	if !r.Bridged {
		for _, a := range r.Addrs {
			err = errors.Join(err, m.setHost(near, a, mac))
		}
	}
	if err != nil {
		return fmt.Errorf("pods: repair %s: %w", near.Attrs().Name, err)
	}
	m.o.Log.Warn("repaired", zap.String("device", near.Attrs().Name))
	return nil
}

// verifyNear compares the node's part of an attachment with the kernel.
func (m *Manager) verifyNear(r *record, near netlink.Link) error {
	is := near.Attrs()
	if is.Flags&net.FlagUp == 0 {
		return coded(api.CodeMismatch, "%s is down", is.Name)
	}
	if r.Bridged {
		bridge, err := m.rt.LinkByName(BridgeName)
		if err != nil || is.MasterIndex != bridge.Attrs().Index {
			return coded(api.CodeMismatch, "%s is not a port of %s", is.Name, BridgeName)
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

// verify compares an attachment with the kernel, on the node and in the pod.
func (m *Manager) verify(r *record) error {
	name := hostName(r.key())
	near, err := m.rt.LinkByName(name)
	if err != nil {
		return coded(api.CodeMismatch, "the node's end %s of the link: %v", name, err)
	}
	if err := m.verifyNear(r, near); err != nil {
		return err
	}
	ns, _, err := openNetns(r.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("pods: enter namespace %s: %w", r.Netns, err)
	}
	defer pod.Close()
	far, err := pod.LinkByName(r.IfName)
	if err != nil {
		return coded(api.CodeMismatch, "interface %s in the pod: %v", r.IfName, err)
	}
	is := far.Attrs()
	switch {
	case near.Attrs().ParentIndex != is.Index || is.ParentIndex != near.Attrs().Index:
		return coded(api.CodeMismatch, "interface %s in the pod is not the other end of %s", r.IfName, name)
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
	for _, want := range r.Result.Routes {
		family := netlink.FAMILY_V4
		if want.Dst.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		routes, err := pod.RouteList(far, family)
		if err != nil {
			return fmt.Errorf("pods: list the pod's routes: %w", err)
		}
		if !slices.ContainsFunc(routes, func(k netlink.Route) bool {
			dst := everything(want.Dst.Addr()).String()
			if k.Dst != nil {
				dst = k.Dst.String()
			}
			return dst == want.Dst.String() && k.Gw.Equal(want.Gateway.AsSlice())
		}) {
			return coded(api.CodeMismatch, "the pod's route to %s by %s is gone", want.Dst, want.Gateway)
		}
	}
	return nil
}
