// Package echo asks other hosts for ICMP echo replies, of any size and in one piece (RFC 792, RFC 4443 §4). It needs CAP_NET_RAW.
package echo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ipv4Header = 20 // without options
	ipv6Header = 40
	echoHeader = 8
)

// ErrSilent says that no reply came.
var ErrSilent = errors.New("no answer")

// Reply is what an echo reply tells.
type Reply struct {
	Took     time.Duration
	Fragment int // bytes of the largest fragment it came in, 0 = it came in one piece
}

// Ask sends an ICMP echo request that makes an IP packet of length bytes, may not be fragmented on the way, and does not heed what
// is known of the path; it waits for the reply. tries requests are sent, wait apart. Without a reply the error is ErrSilent.
func Ask(ctx context.Context, to netip.Addr, length, tries int, wait time.Duration) (Reply, error) {
	network, header, request, reply := "ip4:icmp", ipv4Header, byte(8), byte(0)
	if to.Is6() {
		network, header, request, reply = "ip6:ipv6-icmp", ipv6Header, 128, 129
	}
	var dial net.Dialer
	c, err := dial.DialContext(ctx, network, to.String())
	if err != nil {
		return Reply{}, fmt.Errorf("echo: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := c.(*net.IPConn)
	if err := unfragmented(conn, to); err != nil {
		return Reply{}, fmt.Errorf("echo: %w", err)
	}
	message := make([]byte, max(length-header, echoHeader))
	message[0] = request
	id := uint16(rand.Uint32())
	binary.BigEndian.PutUint16(message[4:], id)
	in, oob := make([]byte, 1<<16), make([]byte, 256)
	for try := range tries {
		binary.BigEndian.PutUint16(message[6:], uint16(try))
		if to.Is4() { // the kernel does it for IPv6
			binary.BigEndian.PutUint16(message[2:], 0)
			binary.BigEndian.PutUint16(message[2:], checksum(message))
		}
		sent := time.Now()
		if _, err := conn.Write(message); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return Reply{}, fmt.Errorf("echo: %w", err)
		}
		conn.SetReadDeadline(sent.Add(wait))
		if ctx.Err() != nil {
			return Reply{}, ctx.Err()
		}
		for {
			n, o, _, _, err := conn.ReadMsgIP(in, oob)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				continue // an ICMP error about an earlier request; the deadline ends it
			}
			got := in[:n]
			if to.Is4() && n > 0 { // with its IP header
				got = got[min(n, int(got[0]&0xf)*4):]
			}
			if len(got) == len(message) && got[0] == reply && binary.BigEndian.Uint16(got[4:]) == id && int(binary.BigEndian.Uint16(got[6:])) <= try {
				return Reply{time.Since(sent), fragmentSize(oob[:o])}, nil
			}
		}
	}
	return Reply{}, ErrSilent
}

// unfragmented makes a socket send nothing in fragments, and tell of received ones (ip(7): IP_PMTUDISC_PROBE sets DF and ignores the
// path MTU that the kernel remembers).
func unfragmented(c *net.IPConn, to netip.Addr) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if to.Is4() {
			set = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVFRAGSIZE, 1))
			return
		}
		set = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVFRAGSIZE, 1))
	})
	return errors.Join(err, set)
}

// fragmentSize reads IP_RECVFRAGSIZE or IPV6_RECVFRAGSIZE among control messages.
func fragmentSize(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVFRAGSIZE
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVFRAGSIZE
		if (v4 || v6) && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Largest finds the largest length that passes, where good does and bad does not.
func Largest(good, bad int, passes func(int) bool) int {
	for bad-good > 1 {
		if middle := (good + bad) / 2; passes(middle) {
			good = middle
		} else {
			bad = middle
		}
	}
	return good
}
