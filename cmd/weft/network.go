package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"weft/control"
	"weft/internal/config"
)

// newNetworkCommand is `weft network`.
func newNetworkCommand() *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "The network's configuration that all nodes share"}
	c.AddCommand(newNetworkShowCommand(), newNetworkSetCommand())
	return c
}

// shared is the network's configuration as it is printed.
type shared struct {
	Pools        []control.Pool            `json:"pools"`
	VNI          uint32                    `json:"vni"`
	Port         uint16                    `json:"port,omitempty"` // 0 = the mode's
	Reservations map[string][]netip.Prefix `json:"reservations"`
}

func newNetworkShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the network's configuration",
		Long: `Print the network's configuration as the control plane (control.kind etcd) has it for all nodes. It
needs no running daemon.`,
		Args: cobra.NoArgs,
	}
	file, form := configFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		store, _, err := networkStore(*file)
		if err != nil {
			return err
		}
		n, ok, err := store.Network(c.Context())
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("there is no network yet: write one with `weft network set`, or start the first node")
		}
		return showNetwork(c.OutOrStdout(), *form, n)
	}
	return c
}

func showNetwork(w io.Writer, form format, n control.Network) error {
	s := shared{n.Pools, n.VNI, n.Port, n.Reservations}
	if s.Reservations == nil {
		s.Reservations = map[string][]netip.Prefix{}
	}
	return show(w, form, s, func(w io.Writer) {
		for _, p := range s.Pools {
			row(w, "prefix", fmt.Sprintf("%v, a /%d for each node", p.Prefix, p.NodeLength))
		}
		row(w, "vni", s.VNI)
		for _, name := range slices.Sorted(maps.Keys(s.Reservations)) {
			row(w, "reserved", fmt.Sprintf("%s for %s", commas(s.Reservations[name]), name))
		}
	})
}

func newNetworkSetCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "set [PREFIX...]",
		Short: "Write the network's configuration",
		Long: `Write the network's configuration into the control plane (control.kind etcd) for all nodes: the
prefixes, by default network.prefixes of the configuration file, how long the prefix of each node is,
and what is reserved for whom. It replaces what was there, reservations included, and refuses what
would take a prefix from a node that holds it.`,
		Example: "  weft network set\n  weft network set 10.244.0.0/16 fd00:10:244::/48 --node-length4 25 --reserve alpha=10.244.0.0/25",
	}
	file, form := configFlag(c), formatFlag(c)
	length4 := c.Flags().Int("node-length4", 0, "bits of each node's IPv4 prefix (0 = 24, or two more than the network's)")
	length6 := c.Flags().Int("node-length6", 0, "bits of each node's IPv6 prefix (0 = 64, or two more than the network's)")
	vni := c.Flags().Uint32("vni", 0, "VXLAN network identifier (0 = network.vni)")
	reserve := c.Flags().StringArray("reserve", nil, "NODE=PREFIX: a prefix that is that node's without expiry; may be given again")
	c.RunE = func(c *cobra.Command, args []string) error {
		store, cfg, err := networkStore(*file)
		if err != nil {
			return err
		}
		n := control.Network{VNI: *vni, Reservations: map[string][]netip.Prefix{}}
		if n.VNI == 0 {
			n.VNI = cfg.Network.VNI
		}
		prefixes := cfg.Network.Prefixes
		if len(args) > 0 {
			if prefixes, err = parsePrefixes(args); err != nil {
				return usageError{err}
			}
		}
		for _, p := range prefixes {
			pool := control.NewPool(p)
			length := *length4
			if p.Addr().Is6() {
				length = *length6
			}
			if length != 0 {
				pool.NodeLength = length
			}
			n.Pools = append(n.Pools, pool)
		}
		for _, r := range *reserve {
			name, prefix, _ := strings.Cut(r, "=")
			list, err := parsePrefixes([]string{prefix})
			if err != nil {
				return usageError{fmt.Errorf("--reserve %s: %w: write NODE=PREFIX", r, err)}
			}
			n.Reservations[name] = append(n.Reservations[name], list...)
		}
		if wrong := n.Wrong(); wrong != "" {
			return usageError{fmt.Errorf("%s", wrong)}
		}
		if err := store.SetNetwork(c.Context(), n); err != nil {
			return err
		}
		return showNetwork(c.OutOrStdout(), *form, n)
	}
	return c
}

func parsePrefixes(words []string) (list []netip.Prefix, err error) {
	for _, w := range words {
		p, err := netip.ParsePrefix(w)
		if err != nil {
			return nil, fmt.Errorf("%q is not a prefix like 10.244.0.0/16 or fd00:10:244::/48", w)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%v has bits set behind its length: write %v", p, p.Masked())
		}
		list = append(list, p)
	}
	return list, nil
}

// networkStore returns the control plane of a configuration, where it keeps the network.
func networkStore(file string) (control.NetworkStore, *config.Config, error) {
	cfg, parts, err := load(file)
	if err != nil {
		return nil, nil, err
	}
	store := parts.Source(cfg, zap.NewNop()).Store()
	if store == nil {
		return nil, nil, configError{fmt.Errorf("control.kind %s keeps no network: with it the network is network.prefixes in each node's file", cfg.Control.Kind)}
	}
	return store, cfg, nil
}
