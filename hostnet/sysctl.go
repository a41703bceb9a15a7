package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// Sysctl is a setting below /proc/sys/net that must have a value while weft runs. It is set where it differs,
// said in the log, and never set back: others may have come to rely on it.
type Sysctl struct {
	Key   string // with slashes, from the family on: "ipv4/ip_forward"
	Value string
}

func (s Sysctl) String() string { return s.Key + "=" + s.Value }

// Forwarding are the settings without which a node drops its pods' packets, for the families in network.
func Forwarding(network []netip.Prefix) (list []Sysctl) {
	has := func(v6 bool) bool {
		return slices.ContainsFunc(network, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
	}
	if has(false) {
		list = append(list, Sysctl{"ipv4/ip_forward", "1"})
	}
	if has(true) {
		list = append(list, Sysctl{forward6, "1"})
	}
	return list
}

const forward6 = "ipv6/conf/all/forwarding"

// sysctls holds /proc/sys/net's directories open: they stay those of the namespace that the opening thread was
// in, whichever thread reads them later.
type sysctls struct {
	v4, v6 *os.Root // nil where the kernel lacks the family
}

func openSysctls() *sysctls {
	s := &sysctls{}
	if root, err := os.OpenRoot("/proc/thread-self/root/proc/sys/net/ipv4"); err == nil {
		s.v4 = root
	}
	if root, err := os.OpenRoot("/proc/thread-self/root/proc/sys/net/ipv6"); err == nil {
		s.v6 = root
	}
	return s
}

func (s *sysctls) close() error {
	var errs []error
	for _, root := range []*os.Root{s.v4, s.v6} {
		if root != nil {
			errs = append(errs, root.Close())
		}
	}
	return errors.Join(errs...)
}

// errNoFamily is a setting of an address family that this kernel does not have.
var errNoFamily = errors.New("the kernel lacks the address family")

func (s *sysctls) file(key string) (*os.Root, string, error) {
	fam, name, _ := strings.Cut(key, "/")
	root := map[string]*os.Root{"ipv4": s.v4, "ipv6": s.v6}[fam]
	if root == nil {
		return nil, "", errNoFamily
	}
	return root, name, nil
}

func (s *sysctls) get(key string) (string, error) {
	root, name, err := s.file(key)
	if err != nil {
		return "", err
	}
	b, err := root.ReadFile(name)
	return strings.TrimSpace(string(b)), err
}

func (s *sysctls) set(key, value string) error {
	root, name, err := s.file(key)
	if err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// settle makes a device of ours what it is for, whatever the machine begins new devices with: it forwards, it is nobody's to configure by
// router advertisements, and it has IPv6 where the overlay has. It returns what was otherwise.
func (h *Host) settle(dev string) (wrong []string, err error) {
	list := []Sysctl{{"ipv4/conf/" + dev + "/forwarding", "1"}, {"ipv6/conf/" + dev + "/accept_ra", "0"}}
	if slices.ContainsFunc(h.network(), func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		list = append(list, Sysctl{"ipv6/conf/" + dev + "/disable_ipv6", "0"})
	}
	var errs []error
	for _, s := range list {
		have, err := h.sysctls.get(s.Key)
		if err != nil || have == s.Value {
			continue // without the family, or below its least MTU, there is nothing to set
		}
		if err := h.sysctls.set(s.Key, s.Value); err != nil && strings.HasSuffix(s.Key, "/accept_ra") {
			// A second line of defence: pods' links let no advertisements in.
			if !h.said[s.Key] {
				h.said[s.Key] = true // it is tried again every second
				h.log.Warn("a device of weft's takes router advertisements, which it should not", zap.String("device", dev), zap.Error(err))
			}
			continue
		} else if err != nil {
			errs = append(errs, fmt.Errorf("sysctl net/%s: %w: run as root, with /proc/sys writable", s, err))
			continue
		}
		wrong = append(wrong, s.Key+"="+have)
	}
	return wrong, errors.Join(errs...)
}

// IPv6 says why devices of ours could not have IPv6; nil where they can.
func (h *Host) IPv6() error {
	if h.sysctls.v6 == nil {
		return errors.New("the kernel has no IPv6: boot without ipv6.disable=1")
	}
	const key = "ipv6/conf/default/disable_ipv6"
	have, err := h.sysctls.get(key)
	if err != nil || have == "0" {
		return nil
	}
	// What new devices begin with is ours to change for ours, unless nobody may.
	if err := h.sysctls.set(key, have); err != nil {
		return fmt.Errorf("new devices begin without IPv6 (net/%s=%s), and that cannot be changed: %w: sysctl -w net.ipv6.conf.default.disable_ipv6=0, or mount /proc/sys writable", key, have, err)
	}
	return nil
}

// syncSysctls sets what differs.
func (p *pass) syncSysctls() {
	for _, w := range p.h.mergeSysctls() {
		w.owner.fail(p.h.setSysctl(w.object))
	}
}

// setSysctl sets a setting where it differs.
func (h *Host) setSysctl(w Sysctl) error {
	have, err := h.sysctls.get(w.Key)
	if err == nil && have == w.Value {
		return nil
	}
	if err == nil {
		if w.Key == forward6 {
			h.keepRouterAdvertisements()
		}
		err = h.sysctls.set(w.Key, w.Value)
	}
	if err != nil {
		return fmt.Errorf("hostnet: sysctl net/%s: %w: run as root, with /proc/sys writable", w, err)
	}
	h.wrote = true
	h.log.Info("set sysctl; it stays so when weft stops", zap.String("key", "net/"+w.Key), zap.String("was", have), zap.String("value", w.Value))
	return nil
}

// keepRouterAdvertisements prepares for IPv6 forwarding: a forwarding host ignores router advertisements, and
// would lose a default route it has from them, unless accept_ra is 2.
func (h *Host) keepRouterAdvertisements() {
	links, err := dumpLinks(h.rt)
	if err != nil {
		h.log.Warn("cannot keep router advertisements accepted", zap.Error(err))
		return
	}
	for _, l := range links {
		is := l.Attrs()
		key := "ipv6/conf/" + is.Name + "/accept_ra"
		v, err := h.sysctls.get(key)
		if err != nil || v != "1" || is.Flags&net.FlagLoopback != 0 || strings.HasPrefix(is.Name, LinkPrefix) {
			continue
		}
		if err := h.sysctls.set(key, "2"); err != nil && !h.said[key] {
			h.said[key] = true // it is tried again every second
			h.log.Warn("cannot keep router advertisements accepted", zap.String("device", is.Name), zap.Error(err))
		}
	}
}
