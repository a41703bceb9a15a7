package xdp

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool is a socket for ethtool ioctls in the network namespace it was opened in.
type ethtool struct{ fd int }

func openEthtool() (ethtool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ethtool{fd: -1}, fmt.Errorf("ethtool socket: %w", err)
	}
	return ethtool{fd: fd}, nil
}

func (e ethtool) close() error { return unix.Close(e.fd) }

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolChannels is struct ethtool_channels.
type ethtoolChannels struct {
	cmd                                 uint32
	maxRX, maxTX, maxOther, maxCombined uint32
	rx, tx, other, combined             uint32
}

const (
	ethtoolGetChannels = 0x3c   // ETHTOOL_GCHANNELS
	flagTXVLAN         = 1 << 7 // ETH_FLAG_TXVLAN: the tag travels beside the frame, not in it
)

func (e ethtool) do(device string, arg unsafe.Pointer) error {
	// struct ifreq with a pointer in its union.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	if len(device) >= len(req.name) {
		return unix.EINVAL
	}
	copy(req.name[:], device)
	req.data = arg
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// set runs one of the ethtool commands that take a number.
func (e ethtool) set(device string, cmd, value uint32) error {
	return e.do(device, unsafe.Pointer(&ethtoolValue{cmd, value}))
}

// clearFlag switches one of the ETH_FLAG_… off.
func (e ethtool) clearFlag(device string, flag uint32) error {
	v := ethtoolValue{cmd: unix.ETHTOOL_GFLAGS}
	if err := e.do(device, unsafe.Pointer(&v)); err != nil {
		return err
	}
	return e.set(device, unix.ETHTOOL_SFLAGS, v.data&^flag)
}

// receiveQueues is how many receive queues the device uses; 1 where the driver does not say.
func (e ethtool) receiveQueues(device string) (int, error) {
	c := ethtoolChannels{cmd: ethtoolGetChannels}
	err := e.do(device, unsafe.Pointer(&c))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the queues of %s: %w", device, err)
	}
	return int(c.rx + c.combined), nil
}

// driver is the device's driver, e.g. "veth".
func (e ethtool) driver(device string) (string, error) {
	info, err := unix.IoctlGetEthtoolDrvinfo(e.fd, device)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask for the driver of %s: %w", device, err)
	}
	return unix.ByteSliceToString(info.Driver[:]), nil
}
