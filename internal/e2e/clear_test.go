package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// watchClear captures on a node's underlay interface until the returned function is called, which reports the overlay
// addresses that appeared there outside of a tunnel, to or from the other node's pods.
func watchClear(t *testing.T, on, other *nettest.ClusterNode) func() []netip.Addr {
	t.Helper()
	var fd int
	var err error
	on.NS.Do(func() {
		// Of no protocol until it is bound: it would hear all interfaces.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := on.NS.Netlink().LinkByName(on.Iface)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	// A read that finds nothing returns often enough to see the stop.
	tv := unix.NsecToTimeval(int64(50 * time.Millisecond))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	stop, done := make(chan struct{}), make(chan []netip.Addr)
	go func() {
		var seen []netip.Addr
		buf := make([]byte, 70000)
		for {
			n, err := unix.Read(fd, buf)
			select { // under traffic no read ever finds nothing
			case <-stop:
				unix.Close(fd)
				done <- seen
				return
			default:
			}
			if err != nil {
				continue
			}
			for _, a := range addrsOf(buf[:n]) {
				for _, p := range append(on.Prefixes, other.Prefixes...) {
					if p.Contains(a) {
						seen = append(seen, a)
					}
				}
			}
		}
	}()
	return func() []netip.Addr { close(stop); return <-done }
}

// addrsOf returns the outermost IP addresses of a frame.
func addrsOf(frame []byte) []netip.Addr {
	if len(frame) < 54 {
		return nil
	}
	switch ip := frame[14:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return []netip.Addr{netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))}
	case unix.ETH_P_IPV6:
		return []netip.Addr{netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))}
	}
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
