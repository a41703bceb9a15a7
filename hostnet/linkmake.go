package hostnet

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/holder"
)

// made says whether the Host makes the device.
func (l Link) made() bool { return l.Vxlan != nil || l.Veth != nil || l.Bridge }

// is says whether a device is of the kind that l describes.
func (l Link) is(have netlink.Link) bool {
	switch {
	case l.Vxlan != nil:
		return l.Vxlan.is(have)
	case l.Veth != nil:
		return have.Type() == "veth"
	}
	return have.Type() == "bridge"
}

// makeLink makes a device that is not there.
func (p *pass) makeLink(want Link, all []netlink.Link) error {
	switch {
	case want.Vxlan != nil:
		return p.makeVxlan(want, all)
	case want.Veth != nil:
		return p.h.makeVeth(want)
	}
	// A MAC of its own, and always the same: otherwise a bridge takes the lowest of its ports', or another one when it is made anew,
	// and pods' neighbour tables go stale.
	mac := want.MAC
	if mac == [6]byte{} {
		sum := sha256.Sum256([]byte("weft bridge " + want.Name))
		copy(mac[:], sum[:])
		mac[0] = mac[0]&^1 | 2
	}
	if err := p.h.rt.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: want.Name, MTU: want.MTU, HardwareAddr: mac[:]}}); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	return nil
}

func (p *pass) makeVxlan(want Link, all []netlink.Link) error {
	err := p.h.addVxlan(want.Name, *want.Vxlan)
	if errors.Is(err, unix.EEXIST) && p.yield(*want.Vxlan, all) {
		err = p.h.addVxlan(want.Name, *want.Vxlan)
	}
	if errors.Is(err, unix.EEXIST) {
		by := "another device"
		for _, l := range all {
			if v, ok := l.(*netlink.Vxlan); ok && v.Name != want.Name && v.VxlanId == int(want.Vxlan.VNI) && v.Port == int(want.Vxlan.Port) {
				by = fmt.Sprintf("%s, %s,", v.Name, holder.Link(v))
			}
		}
		return fmt.Errorf("make vxlan %d port %d: %w: %s has this VNI and port: remove it (`ip link del`), or set network.vni or network.port on all nodes", want.Vxlan.VNI, want.Vxlan.Port, err, by)
	}
	if err != nil {
		return fmt.Errorf("make vxlan: %w", err)
	}
	return nil
}

// ErrNetnsGone is a pod's link that cannot be made because its namespace is gone.
var ErrNetnsGone = errors.New("the network namespace is gone")

// makeVeth makes both ends of a pair. The pod's end is left down and without addresses: what is in a pod's namespace is not the Host's.
func (h *Host) makeVeth(want Link) error {
	v := want.Veth
	fd, err := unix.Open(v.Netns, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w: %w", v.Netns, ErrNetnsGone, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Ino != v.Inode {
		return fmt.Errorf("%s is another namespace now: %w", v.Netns, ErrNetnsGone)
	}
	err = h.rt.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: want.Name, MTU: want.MTU}, PeerMTU: uint32(want.MTU),
		PeerName: v.Peer, PeerNamespace: netlink.NsFd(fd), PeerHardwareAddr: v.PeerMAC[:],
	})
	if err != nil {
		return fmt.Errorf("make veth with %s in %s: %w", v.Peer, v.Netns, err)
	}
	return nil
}
