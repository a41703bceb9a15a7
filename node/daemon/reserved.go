package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"weft/control"
	"weft/hostnet"
	"weft/internal/config"
	"weft/internal/ipnet"
)

// resolvConfs say which name servers this machine asks; the second is there where the first names systemd-resolved.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// reserved is what this node needs outside of the overlay. Those that the overlay must not even have in its network are vital: what leads to
// the other nodes, out of the cluster, and to the control plane.
func reserved(cfg *config.Config, h *hostnet.Host, own []netip.Addr) (all, vital []control.Reserved, err error) {
	t, err := h.Outside()
	if err != nil {
		return nil, nil, err
	}
	for _, g := range t.Nets {
		r := control.Reserved{Prefix: g.Prefix, What: g.String()}
		all = append(all, r)
		if g.Router || g.DefaultRoute || g.Dev == cfg.Node.Interface || slices.ContainsFunc(own, g.Prefix.Contains) {
			vital = append(vital, r)
		}
	}
	for a, what := range servers(cfg) {
		if t.Leads(a) {
			r := control.Reserved{Prefix: ipnet.Host(a), What: what}
			all, vital = append(all, r), append(vital, r)
		}
	}
	for _, a := range own {
		vital = append(vital, control.Reserved{Prefix: ipnet.Host(a), What: fmt.Sprintf("this node's own endpoint %v", a)})
	}
	return all, vital, nil
}

// servers are the hosts that this node asks names and the cluster of, as far as files say their addresses.
func servers(cfg *config.Config) map[netip.Addr]string {
	found := map[netip.Addr]string{}
	add := func(text, format string) {
		if a, err := netip.ParseAddr(text); err == nil && !a.IsLoopback() {
			found[a.Unmap()] = fmt.Sprintf(format, a)
		}
	}
	for _, file := range resolvConfs {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if words := strings.Fields(lines.Text()); len(words) > 1 && words[0] == "nameserver" {
				add(words[1], "the name server %v of "+file)
			}
		}
		f.Close()
	}
	switch cfg.Control.Kind {
	case "etcd":
		for _, e := range cfg.Control.Etcd.Endpoints {
			if u, err := url.Parse(e); err == nil {
				add(u.Hostname(), "the etcd server %v")
			}
		}
	case "kubernetes":
		if cfg.Control.Kubernetes.Kubeconfig == "" {
			add(os.Getenv("KUBERNETES_SERVICE_HOST"), "the API server %v")
		}
	}
	return found
}

// refuse is an error of the configuration where the overlay's network would take away what this node needs to reach the others.
func refuse(cfg *config.Config, h *hostnet.Host, me control.Node) error {
	_, vital, err := reserved(cfg, h, me.Endpoints)
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range vital {
		if wrong := control.Covers(cfg.Network.Prefixes, g); wrong != "" {
			errs = append(errs, fmt.Errorf("%w: %s", ErrConfiguration, wrong))
		}
	}
	return errors.Join(errs...)
}

// readAndRefuse reads the cluster as far as its source tells it before it is joined, nil where it does not, and refuses what cannot be. Nothing
// of this node may be touched before.
func readAndRefuse(cfg *config.Config, parts Parts, h *hostnet.Host, log *zap.Logger) (*control.State, error) {
	state, me, err := read(cfg, parts, h, log)
	if state != nil {
		me = state.Self
	}
	return state, errors.Join(refuse(cfg, h, me), err)
}

// surroundings remembers what reserved said, until something was heard that may change it.
type surroundings struct {
	cfg  *config.Config
	host *hostnet.Host

	mu     sync.Mutex
	looked bool
	news   uint64 // Host.OutsideNews
	all    []control.Reserved
}

// reserved returns what this node needs outside of the overlay.
func (s *surroundings) reserved() []control.Reserved {
	s.mu.Lock()
	defer s.mu.Unlock()
	if news := s.host.OutsideNews(); !s.looked || s.news != news {
		if all, _, err := reserved(s.cfg, s.host, nil); err == nil { // else what was known stays
			s.all, s.news, s.looked = all, news, true
		}
	}
	return s.all
}

// spared remembers what Spare made, so that the same State around the same reserved ranges is the same list of nodes.
type spared struct {
	from     *control.State
	reserved []control.Reserved
	out      control.State
}

// spare leaves out of a State what the overlay would take of this node's own surroundings. It is for the goroutine of applyAll.
func (d *Daemon) spare(s *control.State) *control.State {
	if d.surroundings == nil {
		return s
	}
	sp := &d.spared
	if all := d.surroundings.reserved(); sp.from != s || !slices.Equal(all, sp.reserved) {
		sp.from, sp.reserved, sp.out = s, all, s.Spare(d.cfg.Network.Prefixes, all)
	}
	return &sp.out
}
