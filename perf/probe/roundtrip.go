package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// report of a test that times transactions.
func (h *histogram) metrics(elapsed time.Duration) map[string]float64 {
	us := func(q float64) float64 { return float64(h.quantile(q).Nanoseconds()) / 1e3 }
	return map[string]float64{
		"rate": float64(h.total) / elapsed.Seconds(),
		"p50":  us(.5), "p90": us(.9), "p99": us(.99), "p999": us(.999),
	}
}

// quantilePoints are where a distribution is written down: a curve's worth, denser towards its tail.
var quantilePoints = []float64{
	0, .001, .01, .02, .05, .1, .15, .2, .25, .3, .35, .4, .45, .5, .55, .6, .65, .7, .75, .8, .85, .9, .925, .95, .97, .98, .99,
	.993, .995, .997, .998, .999, .9995, .9999, .99999, 1,
}

// distribution is the curve of what was recorded. A point of the tail is in it only where ten values lie beyond it: the
// rest would be noise; the largest value is always there.
func (h *histogram) distribution() []Quantile {
	const beyond = 10
	var list []Quantile
	for _, q := range quantilePoints {
		if q > .5 && q < 1 && float64(h.total)*(1-q) < beyond {
			continue
		}
		list = append(list, Quantile{q, float64(h.quantile(q).Nanoseconds()) / 1e3})
	}
	return list
}

// repeat times exchange until the duration is over, on the caller's goroutine. An exchange that says
// it did not complete is not counted.
func repeat(c *client, duration time.Duration, h *histogram, exchange func() (completed bool, err error)) (elapsed time.Duration, err error) {
	for clock := startClock(); elapsed < duration && !c.stop.Load(); {
		c.pace.wait(&c.stop)
		begin := clock.now()
		var completed bool
		if completed, err = exchange(); err != nil {
			break
		}
		elapsed = time.Since(clock.begin)
		if completed {
			h.record(elapsed - begin)
		}
	}
	if err = c.blame(err); err == nil && h.total == 0 {
		err = fmt.Errorf("no transaction completed in %s", elapsed)
	}
	return elapsed, err
}

// runTCPRoundTrips bounces one payload on one connection.
func runTCPRoundTrips(ctx context.Context, s Spec, r *Result) error {
	c, ready, err := connect(ctx, s, job{Role: roleTCPEcho, Flows: 1, Congestion: s.Congestion})
	if err != nil {
		return err
	}
	defer c.close()
	conns, err := dialFlows(ctx, s, ready, 1)
	if err != nil {
		return err
	}
	defer closeAll(conns)
	conn := conns[0]
	info, err := conn.tcpInfo()
	if err != nil {
		return err
	}
	const optTimestamps = 1 // TCPI_OPT_TIMESTAMPS
	payload, err := tcpPayload(s.param("size"), s.Target.Addr(), info.Options&optTimestamps != 0, int(info.Snd_mss))
	if err != nil {
		return err
	}
	if _, err := c.ask(message{Type: msgStart, Payload: payload}, msgReady, 2*controlTimeout); err != nil {
		return err
	}
	r.Congestion, r.Payload = conn.congestion(), payload
	p, buf, n := s.pattern(ready), make([]byte, payload), uint64(0)
	replies := func() string { return fmt.Sprintf("%s: reply %d", toClient, n) }
	h := new(histogram)
	elapsed, err := repeat(c, s.Duration, h, func() (bool, error) {
		if stopped, err := conn.writeFull(p.frame(toServer, 0, n)[:payload], &c.stop); stopped || err != nil {
			return false, err
		}
		if stopped, err := conn.readFull(buf, &c.stop); stopped || err != nil {
			return false, err
		}
		r.compare(p, buf, p.frame(toClient, 0, n), replies)
		n++
		return true, nil
	})
	if err != nil {
		return err
	}
	if info, err = conn.tcpInfo(); err == nil {
		r.Retransmits = uint64(info.Total_retrans)
	}
	r.Seconds, r.Transactions, r.Bytes = elapsed.Seconds(), h.total, h.total*uint64(payload)
	r.Latency = h.distribution()
	r.report(h.metrics(elapsed))
	all, err := c.finish()
	r.Add(all.Integrity)
	return err
}

// serveTCPEcho answers each payload with one of the same number.
func (s *session) serveTCPEcho() error {
	l, err := s.listenTCP()
	if err != nil {
		return err
	}
	defer l.Close()
	s.job.Flows = 1
	flows, err := s.accept(l)
	if err != nil {
		return err
	}
	defer closeAll(flows)
	l.Close()
	start, err := s.expect(msgStart)
	if err != nil {
		return err
	}
	if start.Payload < 1 || start.Payload > maxPayload {
		return fmt.Errorf("payload %d: must be between 1 and %d", start.Payload, maxPayload)
	}
	var n uint64
	var i Integrity
	wait := background(func() {
		n, i = echo(flows[0], s.pattern(), make([]byte, start.Payload), allowance{rate: s.limit.rate(0, start.Payload)}, &s.stop)
	})
	over := s.watch()
	err = s.write(message{Type: msgReady})
	if err == nil {
		err = <-over
	}
	s.stop.Store(true)
	wait()
	if err != nil {
		return err
	}
	return s.write(message{Type: msgCounts, Counts: &counts{Packets: n, Replies: n, Bytes: n * uint64(start.Payload), Integrity: i}})
}

func echo(flow socket, p *pattern, buf []byte, allowed allowance, stop *atomic.Bool) (n uint64, i Integrity) {
	requests := func() string { return fmt.Sprintf("%s: request %d", toServer, n) }
	for clock := startClock(); ; clock.now() {
		if stopped, err := flow.readFull(buf, stop); stopped || err != nil {
			return n, i
		}
		i.compare(p, buf, p.frame(toServer, 0, n), requests)
		allowed.wait(stop)
		if stopped, err := flow.writeFull(p.frame(toClient, 0, n)[:len(buf)], stop); stopped || err != nil {
			return n, i
		}
		n++
	}
}

// runTCPConnects makes a connection per transaction. The client closes with a reset, so that neither
// side collects TIME_WAIT sockets and runs out of ports within a second.
func runTCPConnects(ctx context.Context, s Spec, r *Result) error {
	c, ready, err := connect(ctx, s, job{Role: roleTCPAccept, Flows: 1, Congestion: s.Congestion})
	if err != nil {
		return err
	}
	defer c.close()
	domain, to := sockaddr(dataAddr(s, ready))
	r.Payload = 1
	p, buf, n := s.pattern(ready), make([]byte, 1), uint64(0)
	replies := func() string { return fmt.Sprintf("connection %d, request and reply", n) }
	h := new(histogram)
	elapsed, err := repeat(c, s.Duration, h, func() (bool, error) {
		buf[0] = p.frame(toServer, 0, n)[0]
		want := [1]byte{p.reply(buf[0])}
		completed, err := transaction(domain, to, s.Congestion, buf, &c.stop)
		if completed {
			r.compare(p, buf, want[:], replies)
		}
		n++
		return completed, err
	})
	if err != nil {
		return err
	}
	r.Congestion = s.Congestion
	r.Seconds, r.Transactions, r.Bytes = elapsed.Seconds(), h.total, h.total
	r.Latency = h.distribution()
	r.report(h.metrics(elapsed))
	_, err = c.finish()
	return err
}

func sockaddr(a netip.AddrPort) (domain int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	sa6 := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if ifi, err := net.InterfaceByName(a.Addr().Zone()); err == nil {
		sa6.ZoneId = uint32(ifi.Index)
	}
	return unix.AF_INET6, sa6
}

func transaction(domain int, to unix.Sockaddr, congestion string, buf []byte, stop *atomic.Bool) (completed bool, err error) {
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	conn := socket(fd)
	defer conn.close()
	if err := conn.prepare(); err != nil {
		return false, err
	}
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
	); err != nil {
		return false, fmt.Errorf("set socket options: %w", err)
	}
	// SO_SNDTIMEO ends a connect with EINPROGRESS; calling it again goes on waiting.
	for err = unix.Connect(fd, to); err != nil; err = unix.Connect(fd, to) {
		if err == unix.EISCONN {
			break
		}
		if !again(err) && err != unix.EALREADY {
			return false, os.NewSyscallError("connect", err)
		}
		if stop.Load() {
			return false, nil
		}
	}
	if stopped, err := conn.writeFull(buf, stop); stopped || err != nil {
		return false, err
	}
	stopped, err := conn.readFull(buf, stop)
	return !stopped, err
}

// reply is the one byte that answers one: every request has its own, so that a wrong byte either way is a wrong reply.
func (p *pattern) reply(request byte) byte { return request ^ (p.block[0] | 1) }

// serveTCPAccept answers one byte on every connection.
func (s *session) serveTCPAccept() error {
	tcp, err := listenTCP(s.dataAddr(), s.job.Congestion)
	if err != nil {
		return fmt.Errorf("data port: %w", err)
	}
	port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
	l, err := detach(tcp)
	if err != nil {
		return err
	}
	defer l.close()
	var n uint64
	wait := background(func() { n = answer(l, s.pattern(), allowance{rate: s.limit.connections()}, &s.stop) })
	over := s.watch()
	err = s.ready(port)
	if err == nil {
		err = <-over
	}
	s.stop.Store(true)
	wait()
	if err != nil {
		return err
	}
	return s.write(message{Type: msgCounts, Counts: &counts{Packets: n, Replies: n, Bytes: n}})
}

// answer accepts until stop. A connection that says nothing holds it up for a tick at most.
func answer(l socket, p *pattern, allowed allowance, stop *atomic.Bool) (n uint64) {
	buf := make([]byte, 1)
	for clock := startClock(); !stop.Load(); clock.now() {
		fd, _, err := unix.Accept4(int(l), unix.SOCK_CLOEXEC)
		if err != nil && again(err) {
			continue
		}
		if err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return n
		}
		// It inherits the listener's timeouts.
		if k, err := unix.Read(fd, buf); err == nil && k == 1 {
			buf[0] = p.reply(buf[0])
			allowed.wait(stop)
			if k, err := unix.Write(fd, buf); err == nil && k == 1 {
				n++
			}
		}
		unix.Close(fd)
	}
	return n
}
