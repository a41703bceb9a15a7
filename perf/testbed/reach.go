package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// OnlyIPv4 is for a contender that does not carry IPv6: nobody then waits for it.
func (b *Bed) OnlyIPv4() { b.Network = b.Network[:1] }

// Reach waits until the pods of all pairs of nodes reach each other, over all families, with a
// small packet and with one of mtu bytes, in both directions. It asks by UDP echo.
func (b *Bed) Reach(ctx context.Context, mtu int) error {
	for i, from := range b.Nodes {
		for _, to := range b.Nodes[i+1:] {
			for k := range b.Network {
				if err := echo(ctx, from, to, k, mtu); err != nil {
					return fmt.Errorf("testbed: pod %s does not reach pod %s at %s: %w", from.Name, to.Name, to.PodAddrs[k], err)
				}
			}
		}
	}
	return nil
}

// echo sends datagrams from one pod to an echo in the other until one of each size has come back.
func echo(ctx context.Context, from, to *Node, family, mtu int) error {
	far, err := to.Pod.listenUDP(to.PodAddrs[family])
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<16)
		for {
			n, who, err := far.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = far.WriteToUDPAddrPort(buf[:n], who) // the asker repeats itself
			}
		}
	}()
	defer func() { far.Close(); <-done }()
	near, err := from.Pod.listenUDP(from.PodAddrs[family])
	if err != nil {
		return err
	}
	defer near.Close()
	headers := 20 + 8
	if family == 1 {
		headers = 40 + 8
	}
	target := far.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, size := range [...]int{32, mtu - headers} {
		if err := ask(ctx, near, target, size); err != nil {
			return fmt.Errorf("a packet of %d bytes: %w", size+headers, err)
		}
	}
	return nil
}

// ask repeats a datagram of size bytes every 50 ms until it comes back.
func ask(ctx context.Context, c *net.UDPConn, to netip.AddrPort, size int) error {
	question := bytes.Repeat([]byte{byte(size)}, size)
	answer := make([]byte, 1<<16)
	var last error
	for {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, last)
		}
		if _, err := c.WriteToUDPAddrPort(question, to); err != nil {
			last = err // EMSGSIZE, ENETUNREACH: perhaps not for ever
		}
		if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			return err
		}
		for {
			n, _, err := c.ReadFromUDPAddrPort(answer)
			if err != nil {
				if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
					// ICMP unreachable: comes at once, so wait what the timeout would have taken.
					last = err
					time.Sleep(50 * time.Millisecond)
				}
				break
			}
			if bytes.Equal(answer[:n], question) {
				return nil
			}
		}
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// listenUDP opens a socket inside the namespace; it stays there whoever uses it. It never
// fragments, so that a packet of the MTU proves the path's MTU.
func (ns *Namespace) listenUDP(addr netip.Addr) (c *net.UDPConn, err error) {
	err = ns.Do(func() error {
		lc := net.ListenConfig{Control: neverFragment(addr.Is4())}
		pc, err := lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return fmt.Errorf("testbed: open a socket in %s: %w", ns.Name(), err)
		}
		c = pc.(*net.UDPConn)
		return nil
	})
	return c, err
}
