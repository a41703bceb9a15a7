package daemon

import (
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"weft/api"
	"weft/control"
	"weft/hostnet"
	"weft/internal/config"
	"weft/reach/bgp"
)

var _ api.Speaker = (*Daemon)(nil)

// speak makes what speaks BGP.
func speak(cfg *config.Config, host *hostnet.Host, network []netip.Prefix, reserved func() []control.Reserved, log *zap.Logger) (*bgp.Speaker, error) {
	if err := checkBGP(cfg); err != nil {
		return nil, err
	}
	held, err := host.Gateways()
	if err != nil {
		return nil, err
	}
	return bgp.New(bgp.Options{Config: cfg.BGP, Node: cfg.Node.Name, Network: network, OnLink: host.OnLink, Reserved: reserved, Held: held, Log: log}), nil
}

// checkBGP reads the passwords.
func checkBGP(cfg *config.Config) error {
	if cfg.BGP.AS == 0 {
		return nil
	}
	if _, err := bgp.Passwords(cfg.BGP.PasswordFiles()); err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return nil
}

// BGP says with whom prefixes are exchanged by BGP, and what was learnt.
func (d *Daemon) BGP() api.BGP {
	if d.bgp == nil {
		return api.BGP{}
	}
	own, _ := d.ownPrefixes()
	l := d.bgp.Learnt()
	return api.BGP{Enabled: true, AS: d.cfg.BGP.AS, Mesh: d.cfg.BGP.Mesh, Settled: l.Settled, Prefixes: own, Sessions: l.Sessions, Routes: l.Routes, Refused: l.Refused, RefusedMore: l.RefusedMore}
}
