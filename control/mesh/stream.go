package mesh

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// A stream begins with a greeting each way, a packet (see sealer) of one kind byte and 32 random bytes: the caller's, then the answer. Both
// know each other's bytes then, and each way has a key of its own that follows from the secret and all of them, so that nothing that was recorded
// can be said again. What follows are frames
//
//	length 2 | sealed
//
// of at most 16 KiB, with the number of the frame for a nonce. A caller that the other one does not understand gets an answer all the same,
// to find out which of the two is wrong.
const (
	greetingLen = overhead + 1 + saltLen
	saltLen     = 32
	mostFrame   = 16 << 10

	kindCall   = 'c'
	kindAnswer = 'a'
	kindDeny   = 'd' // the answer of one that did not open the greeting, or whose clock differs
)

var errDenied = errors.New("it did not take this node's greeting")

// stream is a connection whose two ends know the password.
type stream struct {
	net.Conn
	in, out *half
}

// half is one way of a stream.
type half struct {
	mu    sync.Mutex
	aead  cipher.AEAD
	count uint64
	rest  []byte // of a frame: opened, and not yet read
}

// call greets who was dialled. The error is errPassword, a clockError or of the network.
func (s *sealer) call(conn net.Conn, patience time.Duration) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	mine := salt()
	if _, err := conn.Write(s.seal(append([]byte{kindCall}, mine...))); err != nil {
		return nil, err
	}
	kind, theirs, _, err := s.greeting(conn)
	switch {
	case err != nil:
		return nil, err
	case kind == kindDeny:
		return nil, errDenied
	case kind != kindAnswer:
		return nil, errPassword
	}
	return s.stream(conn, 0, mine, theirs, "call", "answer"), conn.SetDeadline(time.Time{})
}

// answer greets who has called.
func (s *sealer) answer(conn net.Conn, patience time.Duration) (net.Conn, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	kind, theirs, secret, err := s.greeting(conn)
	mine := salt()
	if err == nil && kind != kindCall {
		err = errPassword
	}
	if wrong := (clockError{}); errors.Is(err, errPassword) || errors.As(err, &wrong) {
		_, _ = conn.Write(s.seal(append([]byte{kindDeny}, mine...))) // it is told as far as it can be
	}
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(s.seal(append([]byte{kindAnswer}, mine...))); err != nil {
		return nil, err
	}
	return s.stream(conn, secret, theirs, mine, "answer", "call"), conn.SetDeadline(time.Time{})
}

func salt() []byte {
	b := make([]byte, saltLen)
	rand.Read(b) // never fails
	return b
}

func (s *sealer) greeting(conn net.Conn) (kind byte, salt []byte, secret int, err error) {
	var packet [greetingLen]byte
	if _, err := io.ReadFull(conn, packet[:]); err != nil {
		return 0, nil, 0, err
	}
	plain, secret, err := s.open(packet[:])
	if err != nil {
		return 0, nil, 0, err
	}
	return plain[0], plain[1:], secret, nil
}

// stream makes the keys, of the secret that the caller seals with.
func (s *sealer) stream(conn net.Conn, secret int, caller, answerer []byte, out, in string) net.Conn {
	key := derive(slices.Concat(s.secrets[secret][:], caller, answerer), "weft mesh stream")
	return &stream{conn, &half{aead: newAEAD(derive(key, in))}, &half{aead: newAEAD(derive(key, out))}}
}

// Write implements net.Conn.
func (s *stream) Write(b []byte) (n int, err error) {
	h := s.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(b) > 0 {
		part := b[:min(len(b), mostFrame)]
		frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(part)+tagLen), uint16(len(part)))
		frame = h.aead.Seal(frame, h.nonce(), part, frame[:2])
		if _, err := s.Conn.Write(frame); err != nil {
			return n, err
		}
		n, b = n+len(part), b[len(part):]
	}
	return n, nil
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) {
	h := s.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.rest) == 0 {
		var length [2]byte
		if _, err := io.ReadFull(s.Conn, length[:]); err != nil {
			return 0, err
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n == 0 || n > mostFrame {
			return 0, fmt.Errorf("mesh: a frame of %d bytes", n)
		}
		frame := make([]byte, n+tagLen)
		if _, err := io.ReadFull(s.Conn, frame); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		plain, err := h.aead.Open(frame[:0], h.nonce(), frame, length[:])
		if err != nil {
			return 0, errors.New("mesh: a frame that somebody has changed")
		}
		h.rest = plain
	}
	n := copy(b, h.rest)
	h.rest = h.rest[n:]
	return n, nil
}

// nonce is the next one. The lock is held.
func (h *half) nonce() []byte {
	var n [nonceLen]byte
	binary.BigEndian.PutUint64(n[nonceLen-8:], h.count)
	h.count++
	return n[:]
}
