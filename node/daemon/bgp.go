package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"weft/api"
	"weft/control"
	"weft/hostnet"
	"weft/internal/config"
	"weft/internal/wholefile"
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
	s := bgp.New(bgp.Options{Config: cfg.BGP, Node: cfg.Node.Name, Network: network, OnLink: host.OnLink, Reserved: reserved, Held: held, Log: log})
	switch _, err := os.Lstat(filepath.Join(cfg.StateDir, drainedFile)); {
	case err == nil:
		s.Drain(true)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("daemon: state_dir: %w", err)
	}
	return s, nil
}

// drainedFile is in the state directory of a node that is drained, so that it is after a restart, too.
const drainedFile = "drained"

// Drain has this node tell of none of its prefixes by BGP, or of them again.
func (d *Daemon) Drain(on bool) error {
	if d.bgp == nil {
		return api.ErrNoBGP
	}
	file := filepath.Join(d.cfg.StateDir, drainedFile)
	if on {
		if err := wholefile.Write(file, 0o600, nil); err != nil {
			return fmt.Errorf("daemon: state_dir: %w", err)
		}
	} else if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("daemon: state_dir: %w", err)
	}
	d.log.Info("this node's prefixes by BGP", zap.Bool("drained", on))
	d.bgp.Drain(on)
	return nil
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
	l := d.bgp.Learnt()
	var own []netip.Prefix
	if !l.Drained {
		own, _ = d.ownPrefixes()
	}
	return api.BGP{Enabled: true, AS: d.cfg.BGP.AS, Mesh: d.cfg.BGP.Mesh, Settled: l.Settled, Drained: l.Drained, Prefixes: own, Sessions: l.Sessions, Routes: l.Routes, Refused: l.Refused, RefusedMore: l.RefusedMore}
}
