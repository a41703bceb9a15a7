package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The package speaks netlink itself instead of through a library for three things it needs at 5,000 nodes: dumps
// that the kernel filters, many requests in one system call, and addresses as netip all the way.

// native is the byte order of netlink headers and integers: the machine's.
var native = binary.NativeEndian

// message is one netlink request under construction: a fixed family header, then attributes.
//
//	nlmsghdr (16) | header of the family | rtattr (4) value, padded to 4 | …
type message struct {
	kind, flags uint16
	body        []byte
}

func (m *message) attr(kind uint16, value []byte) {
	m.body = native.AppendUint16(m.body, uint16(unix.SizeofRtAttr+len(value)))
	m.body = native.AppendUint16(m.body, kind)
	m.body = append(m.body, value...)
	m.pad()
}

func (m *message) pad() {
	for len(m.body)%4 != 0 {
		m.body = append(m.body, 0)
	}
}

func (m *message) u8(kind uint16, v uint8) { m.attr(kind, []byte{v}) }

func (m *message) flag(kind uint16, v bool) {
	if v {
		m.u8(kind, 1)
	} else {
		m.u8(kind, 0)
	}
}

func (m *message) u32(kind uint16, v uint32) { m.attr(kind, native.AppendUint32(nil, v)) }

func (m *message) text(kind uint16, v string) { m.attr(kind, append([]byte(v), 0)) }

// nest puts the attributes that fill adds inside one of the given kind.
func (m *message) nest(kind uint16, fill func()) {
	start := len(m.body)
	m.attr(kind|unix.NLA_F_NESTED, nil)
	fill()
	native.PutUint16(m.body[start:], uint16(len(m.body)-start))
}

// nlaTypeMask leaves out NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const nlaTypeMask = 0x3fff

// attrs iterates over a list of attributes; it ends at the first malformed one.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(native.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(native.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

func align(n int) int { return (n + 3) &^ 3 }

// socket is a netlink socket in one namespace. Safe for concurrent use: one exchange at a time.
type socket struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

const (
	// batchMessages requests go in one system call. Each ack takes about a kilobyte of the receive buffer.
	batchMessages = 64
	batchBytes    = 32 << 10

	// dumpTries is how often a dump that changed underneath is repeated.
	dumpTries = 10
)

// errInterrupted is a dump that the kernel marked inconsistent (NLM_F_DUMP_INTR).
var errInterrupted = errors.New("the kernel's tables changed during the dump")

func openSocket(ns netns.NsHandle, protocol int) (*socket, error) {
	fd, err := socketAt(ns, protocol)
	if err != nil {
		return nil, fmt.Errorf("hostnet: open netlink: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, 64<<10)}
	// A lost answer must not hang the daemon; RTNL may be held for seconds on a busy machine.
	timeout := unix.Timeval{Sec: 30}
	errs := []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(fmt.Errorf("hostnet: set up netlink: %w", err), unix.Close(fd))
	}
	if protocol == unix.NETLINK_ROUTE {
		// Lets the kernel filter dumps. Before Linux 4.20 it cannot; every parser filters as well.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	}
	return s, nil
}

// socketAt opens a netlink socket in a namespace, whichever one the caller is in.
func socketAt(ns netns.NsHandle, protocol int) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread that changed namespace dies with the goroutine
		if err = netns.Set(ns); err == nil {
			fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		}
	}()
	<-done
	return fd, err
}

func (s *socket) close() error { return unix.Close(s.fd) }

// do sends requests and returns the kernel's answer to each, in order. One that fails does not stop the rest.
func (s *socket) do(msgs []message) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers := make([]error, len(msgs))
	for start := 0; start < len(msgs); {
		var out []byte
		first := s.seq + 1
		end := start
		for ; end < len(msgs) && end-start < batchMessages && (end == start || len(out) < batchBytes); end++ {
			out = s.append(out, msgs[end], unix.NLM_F_ACK)
		}
		if err := s.exchange(out, first, answers[start:end]); err != nil {
			for i := start; i < len(msgs); i++ {
				answers[i] = errors.Join(answers[i], err)
			}
			return answers
		}
		start = end
	}
	return answers
}

// do1 sends one request.
func (s *socket) do1(m message) error { return s.do([]message{m})[0] }

// append adds the request's bytes to out, under the next sequence number.
func (s *socket) append(out []byte, m message, flags uint16) []byte {
	s.seq++
	out = native.AppendUint32(out, uint32(unix.SizeofNlMsghdr+len(m.body)))
	out = native.AppendUint16(out, m.kind)
	out = native.AppendUint16(out, m.flags|flags|unix.NLM_F_REQUEST)
	out = native.AppendUint32(out, s.seq)
	out = native.AppendUint32(out, 0)
	return append(out, m.body...) // bodies are padded to 4
}

// exchange sends requests numbered from first and waits for the acks of all; answers[i] is that of first+i. An
// error is the socket's, not a request's.
func (s *socket) exchange(out []byte, first uint32, answers []error) error {
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	for missing := len(answers); missing > 0; {
		var refused error
		err := s.receive(func(h header, payload []byte) {
			if h.kind != unix.NLMSG_ERROR {
				return
			}
			err := parseError(h, payload)
			if i := h.seq - first; i < uint32(len(answers)) {
				answers[i] = err
				missing--
			} else if h.seq == first-1 {
				refused = err // the head of a transaction, which is acknowledged only where it fails
			}
		})
		if err := errors.Join(err, refused); err != nil {
			return err
		}
	}
	return nil
}

// header is the part of nlmsghdr that readers need.
type header struct {
	kind, flags uint16
	seq         uint32
}

// receive reads one datagram from the kernel and calls each for its messages.
func (s *socket) receive(each func(header, []byte)) error {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink receive: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not from the kernel
		}
		messages(s.buf[:n], each)
		return nil
	}
}

// messages splits a datagram into its messages.
func messages(b []byte, each func(header, []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(native.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		each(header{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:])}, b[unix.SizeofNlMsghdr:n])
		b = b[min(align(n), len(b)):]
	}
}

// nlmsgerr attributes (linux/netlink.h).
const nlmsgerrAttrMsg = 1

// parseError turns NLMSG_ERROR or the end of a dump into an error; nil for an ack.
//
//	errno (4) | nlmsghdr of the request (16) | the request, unless NLM_F_CAPPED | attributes, if NLM_F_ACK_TLVS
func parseError(h header, payload []byte) error {
	if len(payload) < 4 {
		return nil // NLMSG_DONE without a status
	}
	code := int32(native.Uint32(payload))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	if h.kind != unix.NLMSG_ERROR || h.flags&unix.NLM_F_ACK_TLVS == 0 || len(payload) < 4+unix.SizeofNlMsghdr {
		return err
	}
	rest := payload[4+unix.SizeofNlMsghdr:]
	if h.flags&unix.NLM_F_CAPPED == 0 {
		request := int(native.Uint32(payload[4:])) - unix.SizeofNlMsghdr
		rest = rest[max(0, min(align(request), len(rest))):]
	}
	for kind, value := range attrs(rest) {
		if kind == nlmsgerrAttrMsg && len(value) > 0 {
			return fmt.Errorf("%w (%s)", err, unix.ByteSliceToString(value))
		}
	}
	return err
}

// get sends a request that is answered by one message, and returns that.
func (s *socket) get(m message) (answer []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.append(nil, m, 0)
	seq := s.seq
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink send: %w", err)
	}
	for done := false; !done; {
		e := s.receive(func(h header, payload []byte) {
			if h.seq != seq {
				return
			}
			done = true
			if h.kind == unix.NLMSG_ERROR {
				err = parseError(h, payload)
			} else {
				answer = slices.Clone(payload)
			}
		})
		if e != nil {
			return nil, e
		}
	}
	return answer, err
}

// dump asks for a table and returns what parse makes of its entries; parse says false to leave one out. It
// starts again when the table changed underneath.
func dump[T any](s *socket, m message, answer uint16, parse func([]byte) (T, bool)) ([]T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range dumpTries {
		var list []T
		err = s.dumpOnce(m, func(h header, payload []byte) {
			if h.kind != answer {
				return
			}
			if v, ok := parse(payload); ok {
				list = append(list, v)
			}
		})
		if !errors.Is(err, errInterrupted) {
			return list, err
		}
	}
	return nil, err
}

func (s *socket) dumpOnce(m message, each func(header, []byte)) error {
	out := s.append(nil, m, unix.NLM_F_DUMP)
	seq := s.seq
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}
	var result error
	for done := false; !done; {
		err := s.receive(func(h header, payload []byte) {
			if h.seq != seq {
				return // the rest of an exchange that timed out
			}
			if h.flags&unix.NLM_F_DUMP_INTR != 0 {
				result = errInterrupted
			}
			switch h.kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if err := parseError(h, payload); err != nil {
					result = err
				}
			default:
				each(h, payload)
			}
		})
		if err != nil {
			return err
		}
	}
	return result
}
