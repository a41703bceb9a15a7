package nettest

import (
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
)

// nextPort is the next port of this process's loopback address.
var nextPort atomic.Uint32

// FreeAddr returns a loopback address and port for a server that is started, and perhaps started again, by somebody else than
// the test. A port that the kernel gave out for a moment may be another process's by the time it is used. So the address is one of
// 127.64.0.0/10 that follows from this process's number: nobody else has ports of it, and connections begin at none.
func FreeAddr(t testing.TB) netip.AddrPort {
	t.Helper()
	pid := os.Getpid() // below 1<<22 (PID_MAX_LIMIT)
	addr := netip.AddrFrom4([4]byte{127, 64 | byte(pid>>16)&63, byte(pid >> 8), byte(pid)})
	for range 1000 { // somebody may listen on a port of all addresses
		at := netip.AddrPortFrom(addr, uint16(20000+nextPort.Add(1)%10000))
		l, err := net.Listen("tcp", at.String())
		if err == nil {
			l.Close()
			return at
		}
	}
	t.Fatalf("no port of %s can be listened on", addr)
	return netip.AddrPort{}
}
