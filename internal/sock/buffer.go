package sock

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Buffer is what a tunnel's socket should hold, in bytes of packet data; the kernel doubles it for its own bookkeeping. At 10 Gbit/s it
// is 6 ms: what a lane may be held up by the scheduler.
const Buffer = 8 << 20

// ReceiveBuffer makes the receive buffer as large as Buffer, beyond the administrator's limit where we may. An error says how large it
// is instead; the socket works.
func (s *Socket) ReceiveBuffer() error {
	return s.enlarge(unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, "net.core.rmem_max")
}

// SendBuffer does the same for what waits to be sent.
func (s *Socket) SendBuffer() error {
	return s.enlarge(unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, "net.core.wmem_max")
}

func (s *Socket) enlarge(force, ask int, limit string) error {
	why := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, force, Buffer)
	if why == nil {
		return nil
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, ask, Buffer); err != nil {
		why = err
	}
	got, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, ask)
	if err != nil {
		why = err
	}
	if got /= 2; got < Buffer { // the kernel tells its doubled figure
		return fmt.Errorf("%d bytes instead of %d: %w: raise %s or grant CAP_NET_ADMIN", got, Buffer, why, limit)
	}
	return nil
}
