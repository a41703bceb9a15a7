package probe

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KeySize is how long the key of a server and its clients is, bytes.
const KeySize = 32

// nonceSize is how long each end's share of a challenge is, bytes.
const nonceSize = 16

// Before anything else on a control connection with a key, over the very path that is to be measured, both ends prove that they have it:
//
//	client                                                   server
//	nonce c                                            ─►
//	                                                   ◄─    nonce s, HMAC-SHA-256(key, "server" c s)
//	HMAC-SHA-256(key, "client" c s)                    ─►
//
// So a client sends no load to an address whose owner does not expect it, and a server does nothing for strangers, who cost it one small
// computation. The token of the data streams is made of key and nonces too, and never on the wire.
type proof struct{ key, nonces []byte }

func (p proof) of(what string) []byte {
	h := hmac.New(sha256.New, p.key)
	h.Write([]byte(what))
	h.Write(p.nonces)
	return h.Sum(nil)
}

// token is that of the session's data.
func (p proof) token() uint64 { return binary.BigEndian.Uint64(p.of("token")) }

// ErrProof says that the other end did not prove that it expects this one.
var ErrProof = errors.New("whoever answers there does not know of this measurement: nothing was sent to it")

// prove is the client's side of the challenge.
func prove(c net.Conn, key []byte) (p proof, err error) {
	if err := c.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return p, err
	}
	defer c.SetDeadline(time.Time{})
	var mine [nonceSize]byte
	rand.Read(mine[:])
	if _, err := c.Write(mine[:]); err != nil {
		return p, err
	}
	var answer [nonceSize + sha256.Size]byte
	if err := readFull(c, answer[:]); err != nil {
		return p, fmt.Errorf("%w: %w", ErrProof, err)
	}
	p = proof{key, append(mine[:], answer[:nonceSize]...)}
	if !hmac.Equal(answer[nonceSize:], p.of("server")) {
		return p, ErrProof
	}
	_, err = c.Write(p.of("client"))
	return p, err
}

// challenge is the server's side.
func challenge(c net.Conn, key []byte) (p proof, err error) {
	if err := c.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return p, err
	}
	defer c.SetDeadline(time.Time{})
	var theirs, mine [nonceSize]byte
	if err := readFull(c, theirs[:]); err != nil {
		return p, err
	}
	rand.Read(mine[:])
	p = proof{key, append(theirs[:], mine[:]...)}
	if _, err := c.Write(append(mine[:], p.of("server")...)); err != nil {
		return p, err
	}
	var answer [sha256.Size]byte
	if err := readFull(c, answer[:]); err != nil {
		return p, err
	}
	if !hmac.Equal(answer[:], p.of("client")) {
		return p, errors.New("a client without the key")
	}
	return p, nil
}

func readFull(c net.Conn, b []byte) error {
	for len(b) > 0 {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// dialer connects from the address that the spec names, so that the system takes the path which begins there.
func (s Spec) dialer(network string) net.Dialer {
	d := net.Dialer{Timeout: controlTimeout}
	if !s.Source.IsValid() {
		return d
	}
	at := netip.AddrPortFrom(s.Source, 0)
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(at)
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(at)
	}
	return d
}

// PathMTU asks the path to a server what it carries: the largest IP packet, bytes. It proves the server first, then sends at most five
// datagrams as large as the system believes in, and reads what routers answered. A router that drops them and says nothing is not found.
func PathMTU(ctx context.Context, s Spec) (int, error) {
	d := s.dialer("tcp")
	c, err := d.DialContext(ctx, "tcp", s.Target.String())
	if err != nil {
		return 0, s.silent(s.Target, err)
	}
	defer c.Close()
	if _, err := prove(c, s.Key); err != nil {
		return 0, err
	}
	conn, err := dialUDP(ctx, s, s.Target)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	mtu, err := conn.pathMTU(s.Target.Addr())
	for range 5 {
		if err != nil {
			break
		}
		_, _ = unix.Write(int(conn), make([]byte, min(mtu, maxPacket)-ipHeader(s.Target.Addr())-udpHeader)) // EMSGSIZE is news as well
		time.Sleep(50 * time.Millisecond)
		was := mtu
		if mtu, err = conn.pathMTU(s.Target.Addr()); err == nil && mtu == was {
			break
		}
	}
	return mtu, err
}

// Limit is what a generator may send at most, whatever it is asked for. Zero is no limit.
type Limit struct {
	Bits    float64 `json:"bits"`    // payload bit/s
	Packets float64 `json:"packets"` // packet/s
}

// And is the lower of two limits.
func (l Limit) And(o Limit) Limit {
	lower := func(a, b float64) float64 {
		if a == 0 || b > 0 && b < a {
			return b
		}
		return a
	}
	return Limit{lower(l.Bits, o.Bits), lower(l.Packets, o.Packets)}
}

// String says the limit in words; "" = there is none.
func (l Limit) String() string {
	var all []string
	if l.Bits > 0 {
		all = append(all, fmt.Sprintf("at most %g bit/s", l.Bits))
	}
	if l.Packets > 0 {
		all = append(all, fmt.Sprintf("at most %g packet/s", l.Packets))
	}
	return strings.Join(all, ", ")
}

// share is a part of the limit.
func (l Limit) share(part float64) Limit { return Limit{l.Bits * part, l.Packets * part} }

// rate bounds packets a second of a payload in bytes; asked 0 is as fast as possible.
func (l Limit) rate(asked float64, payload int) float64 {
	most := l.Packets
	if l.Bits > 0 {
		if by := l.Bits / 8 / float64(max(payload, 1)); most == 0 || by < most {
			most = by
		}
	}
	if most > 0 && (asked == 0 || asked > most) {
		return most
	}
	return asked
}

// connections bounds the connections a second of tcp-crr: an end sends up to four packets for each (SYN, ACK, payload, RST).
func (l Limit) connections() float64 {
	l.Packets /= 4
	return l.rate(0, 1)
}

// bytes bounds bytes a second of a stream; asked 0 is as fast as possible. A segment is the smallest there can be, where packets are bounded.
func (l Limit) bytes(asked float64) float64 {
	const segment = 1200
	most := l.Bits / 8
	if by := l.Packets * segment; by > 0 && (most == 0 || by < most) {
		most = by
	}
	if most > 0 && (asked == 0 || asked > most) {
		return most
	}
	return asked
}

// allowance says when the next answer of an echo may be sent.
type allowance struct {
	rate float64 // 1/s; 0 = always
	next time.Time
}

// take says whether one more may be sent now. Bursts of 10 ms are let through.
func (a *allowance) take() bool {
	if a.rate == 0 {
		return true
	}
	now := time.Now()
	if earliest := now.Add(-10 * time.Millisecond); a.next.Before(earliest) {
		a.next = earliest
	}
	if a.next.After(now) {
		return false
	}
	a.next = a.next.Add(time.Duration(1e9 / a.rate))
	return true
}

// wait is take for those who must not leave one out.
func (a *allowance) wait(stop interface{ Load() bool }) {
	for !a.take() && !stop.Load() {
		time.Sleep(min(time.Until(a.next), tick))
	}
}
