package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/wholefile"
)

// subnetEnv is what Flannel's CNI plugin reads: flanneld's hand-over of its lease, with the first
// usable address of this node's prefixes. nil = there is nothing to hand over yet.
//
//	FLANNEL_NETWORK=10.244.0.0/16
//	FLANNEL_SUBNET=10.244.1.1/24
//	FLANNEL_IPV6_NETWORK=…, FLANNEL_IPV6_SUBNET=…
//	FLANNEL_MTU=1450
//	FLANNEL_IPMASQ=false
//
// IPMASQ says whether the daemon masquerades; with false the plugin has the bridge do it.
func subnetEnv(network []netip.Prefix, self control.Node, mtu int) []byte {
	if len(self.Prefixes) == 0 || mtu == 0 {
		return nil
	}
	var b bytes.Buffer
	for _, p := range self.Prefixes {
		name := "FLANNEL_"
		if p.Addr().Is6() {
			name = "FLANNEL_IPV6_"
		}
		for _, n := range network {
			if n.Overlaps(p) && !bytes.Contains(b.Bytes(), []byte(name+"SUBNET=")) {
				fmt.Fprintf(&b, "%sNETWORK=%v\n%sSUBNET=%v\n", name, n, name, netip.PrefixFrom(control.HostAddr(p), p.Bits()))
			}
		}
	}
	fmt.Fprintf(&b, "FLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", mtu)
	return b.Bytes()
}

// handOver keeps control.subnet_env, which Flannel's CNI plugin reads: there while traffic is carried, and else not.
func (d *Daemon) handOver(f control.InForce) {
	file := d.cfg.Control.SubnetEnv
	if file == "" {
		return
	}
	var text []byte
	if f.Carries() {
		text = subnetEnv(d.cfg.Network.Prefixes, f.State.Self, f.InnerMTU)
	}
	if err := writeSubnetEnv(file, text); err != nil {
		d.log.Error("the hand-over to Flannel's CNI plugin is not written", zap.Error(err))
	}
}

// writeSubnetEnv keeps the file up to date, whole or not at all. Where there is nothing to hand over
// the file goes: no pod may be given an address that is another node's.
func writeSubnetEnv(file string, text []byte) error {
	if text == nil {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("daemon: control.subnet_env: %w", err)
		}
		return nil
	}
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, text) {
		return nil
	}
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = wholefile.Write(file, 0o644, text)
	}
	if err != nil {
		return fmt.Errorf("daemon: control.subnet_env: %w", err)
	}
	return nil
}
