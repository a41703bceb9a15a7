package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// plain are the settings of a namespace that the kernel gives to the machine's first one when it boots. A new one has copies of what
// the machine has made of its own (net.core.devconf_inherit_init_net: all of IPv4's, if nothing else is said), so that a strict
// rp_filter, or forwarding, would be what a test or the lab meets on one machine and not on the next. Keyed by family; "default" differs
// from "all" where a second value is given.
var plain = map[string]map[string][2]string{
	"ipv4": {
		"accept_local": {"0"}, "accept_redirects": {"1"}, "accept_source_route": {"0", "1"}, "arp_accept": {"0"}, "arp_announce": {"0"},
		"arp_filter": {"0"}, "arp_ignore": {"0"}, "arp_notify": {"0"}, "disable_policy": {"0"}, "disable_xfrm": {"0"},
		"drop_gratuitous_arp": {"0"}, "drop_unicast_in_l2_multicast": {"0"}, "forwarding": {"0"}, "ignore_routes_with_linkdown": {"0"},
		"log_martians": {"0"}, "promote_secondaries": {"0"}, "proxy_arp": {"0"}, "proxy_arp_pvlan": {"0"}, "route_localnet": {"0"},
		"rp_filter": {"0"}, "secure_redirects": {"1"}, "send_redirects": {"1"}, "shared_media": {"1"}, "src_valid_mark": {"0"},
	},
	"ipv6": {"accept_ra": {"1"}, "autoconf": {"1"}, "disable_ipv6": {"0"}, "forwarding": {"0"}},
}

// plainSettings gives the namespace of the calling thread the plain settings, for all devices and for new ones. What the kernel does not
// have is left out. The thread may have a mount namespace of its own afterwards: it must not serve other goroutines.
func plainSettings() error {
	for family, settings := range plain {
		for name, values := range settings {
			for i, which := range []string{"all", "default"} {
				want := values[i]
				if want == "" {
					want = values[0]
				}
				if err := setPlain(filepath.Join("/proc/sys/net", family, "conf", which, name), want); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func setPlain(file, want string) error {
	have, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(have)) == want {
		return nil
	}
	if err == nil {
		err = os.WriteFile(file, []byte(want), 0)
	}
	if errors.Is(err, unix.EROFS) {
		if err = apartMounts(); err == nil {
			err = errors.Join(writableSysctls(), os.WriteFile(file, []byte(want), 0))
		}
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", file, want, err)
	}
	return nil
}
