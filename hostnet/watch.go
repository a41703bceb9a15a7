package hostnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/internal/backoff"
)

const (
	// settle is how long Run lets a burst of changes pass before it looks.
	settle = 20 * time.Millisecond
	// spacing bounds how often somebody who keeps undoing our work makes us redo it.
	spacing = 100 * time.Millisecond
	// belt is the longest time without a look, for what no notification tells.
	belt = time.Second
	// share bounds what the belt costs: after a look that took d, at least share × d pass without news.
	share = 100
	// relisten is the first pause before notifications are asked for again.
	relisten = 10 * time.Millisecond
)

// Run keeps what the owners want in force until ctx ends: whatever anybody else removes or changes is put back, soon after netlink
// tells of it, and at the latest after a second (more where a look at everything takes longer than 10 ms). It tells the owners
// (Changed) when it has looked, when a device named in a Want.Watch has changed, and when somebody else's routes or rules have, at most
// every second: then their plans may be others. Run fails when the kernel's notifications cannot be had at all.
func (h *Host) Run(ctx context.Context) error {
	news := make(chan struct{}, 1)
	notify := func() {
		select {
		case news <- struct{}{}:
		default: // one is on its way
		}
	}
	listener, err := h.listen()
	if err != nil {
		return err
	}
	h.doubt.Store(true) // for what happened before we listened
	h.underlayNews.Add(1)
	h.outsideNews.Add(1)
	notify()
	h.listening.Store(true)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.follow(ctx, listener, notify)
	}()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		h.followFirewall(ctx, notify)
	}()
	defer func() {
		cancel()
		<-ended
		<-heard
	}()

	timer := time.NewTimer(belt)
	defer timer.Stop()
	whole := time.Now().Add(belt) // when everything is looked at again without news
	var around time.Time          // when the owners were last told of what others did
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			if time.Now().Before(whole) { // nftables tells by one number whether to look
				h.firewallNews.Store(true)
				h.repair()
				if h.around.Swap(false) {
					around = time.Now()
					h.tell()
				}
				timer.Reset(belt)
				continue
			}
			h.doubt.Store(true)
		case <-news:
			if !backoff.Sleep(ctx, settle) {
				return nil
			}
			select {
			case <-news: // of the same burst
			default:
			}
			h.mu.Lock()
			doubtful := h.doubtful() || h.firewallNews.Load()
			h.mu.Unlock()
			if !doubtful {
				told := h.inside.Swap(false)
				if time.Since(around) >= belt && h.around.Swap(false) { // else when the timer ends
					told, around = true, time.Now()
				}
				if told {
					h.tell()
				}
				continue // otherwise the burst was our own, or undid itself
			}
		}
		start := time.Now()
		h.repair()
		h.tell()
		took := max(time.Since(start), time.Duration(h.whole.Load())) // an owner may have been at it too
		if !backoff.Sleep(ctx, spacing) {
			return nil
		}
		whole = time.Now().Add(max(belt, share*took) - spacing)
		timer.Reset(belt - spacing)
	}
}

// tell lets every owner know that something may have changed.
func (h *Host) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.owners {
		select {
		case o.changed <- struct{}{}:
		default: // it has not looked since the last
		}
	}
}

// follow reads notifications until ctx ends, opening a new socket when one breaks.
func (h *Host) follow(ctx context.Context, listener *nl.NetlinkSocket, notify func()) {
	defer h.listening.Store(false)
	again := backoff.Backoff{First: relisten, Most: 10 * time.Second}
	for {
		began := time.Now()
		err := h.read(ctx, listener, notify)
		h.listening.Store(false)
		listener.Close()
		if time.Since(began) > again.Most {
			again.Reset()
		}
		if listener = h.listenAgain(ctx, &again, err); listener == nil {
			return
		}
		h.underlayNews.Add(1)
		h.outsideNews.Add(1)
		h.doubt.Store(true)
		notify()
		h.listening.Store(true)
	}
}

// UnderlayNews counts what was heard, or may have been missed, of devices named in a Want.Watch and of their addresses; of all devices
// while none is named.
func (h *Host) UnderlayNews() uint64 { return h.underlayNews.Load() }

// listenAgain opens a new socket after one that broke with err; nil when ctx ended first.
func (h *Host) listenAgain(ctx context.Context, again *backoff.Backoff, err error) (listener *nl.NetlinkSocket) {
	for ctx.Err() == nil {
		pause := again.Next()
		h.log.Warn("kernel changes are not heard: looking every second, and listening again", zap.Error(err), zap.Duration("in", pause))
		if !backoff.Sleep(ctx, pause) {
			break
		}
		if listener, err = h.listen(); err == nil {
			return listener
		}
	}
	return nil
}

// read passes on what concerns us until the socket breaks or ctx ends.
func (h *Host) read(ctx context.Context, listener *nl.NetlinkSocket, notify func()) error {
	stop := context.AfterFunc(ctx, listener.Close)
	defer stop()
	for {
		news, from, err := listener.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			h.underlayNews.Add(1)
			h.outsideNews.Add(1)
			h.doubt.Store(true) // the kernel dropped notifications; the socket itself goes on
			notify()
			continue
		}
		if err != nil {
			return err
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		for _, m := range news {
			if h.concerns(m) {
				h.underlayNews.Add(1)
				h.outsideNews.Add(1)
				h.doubt.Store(true)
				notify()
			} else if h.surprising(m) {
				notify()
			}
		}
	}
}

// followFirewall reads notifications of nftables until ctx ends. What it misses, the belt finds by the ruleset's generation.
func (h *Host) followFirewall(ctx context.Context, notify func()) {
	for ctx.Err() == nil {
		listener, err := h.subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
		if err == nil {
			h.readFirewall(ctx, listener, notify)
			listener.Close()
		}
		backoff.Sleep(ctx, belt)
	}
}

func (h *Host) readFirewall(ctx context.Context, listener *nl.NetlinkSocket, notify func()) {
	defer context.AfterFunc(ctx, listener.Close)()
	self := os.Getpid()
	for {
		news, from, err := listener.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		foreign := err != nil // some were dropped
		if err == nil && from.Pid == nl.PidKernel {
			foreign = slices.ContainsFunc(news, func(m syscall.NetlinkMessage) bool { return foreignGeneration(m, self) })
		}
		if foreign {
			h.firewallChanged(notify)
		}
	}
}

// listen opens a socket for notifications. The library's Subscribe functions would be a socket for each kind,
// which ends when the kernel drops a notification.
func (h *Host) listen() (*nl.NetlinkSocket, error) {
	listener, err := h.subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, groupNextHop)
	if err != nil {
		return nil, fmt.Errorf("hostnet: subscribe to kernel changes: %w", err)
	}
	// Room for a burst; what does not fit is noticed (ENOBUFS) and costs one look.
	_ = listener.SetReceiveBufferSize(1<<20, false)
	return listener, nil
}

func (h *Host) subscribe(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	runtime.LockOSThread() // the namespace is the thread's
	defer runtime.UnlockOSThread()
	ns, err := h.elsewhere()
	if err != nil {
		return nil, err
	}
	return nl.SubscribeAt(ns, netns.None(), protocol, groups...)
}

// elsewhere returns the Host's namespace where the calling thread is in another one, and else none: to enter a namespace takes
// CAP_SYS_ADMIN, even the one where one is, and a daemon that has but one namespace does without.
func (h *Host) elsewhere() (netns.NsHandle, error) {
	here, err := netns.Get()
	if err != nil {
		return netns.None(), fmt.Errorf("hostnet: open the network namespace: %w", err)
	}
	defer here.Close()
	if here.Equal(h.ns) {
		return netns.None(), nil
	}
	return h.ns, nil
}

// here runs f on a thread in the Host's namespace.
func (h *Host) here(f func() error) error {
	ns, err := h.elsewhere()
	if err != nil || !ns.IsOpen() {
		return errors.Join(err, f())
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// concerns says whether a notification may be about the underlay or the loopback device's addresses, or cannot be read. While nothing is
// watched, any device may be the underlay to come.
func (h *Host) concerns(m syscall.NetlinkMessage) bool {
	watched := func(index int) bool {
		set := h.watched.Load()
		return set == nil || len(*set) == 0 || (*set)[index]
	}
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := netlink.LinkDeserialize(nil, m.Data)
		return err != nil || watched(l.Attrs().Index)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return watched(int(nl.DeserializeIfAddrmsg(m.Data).Index))
	}
	return false
}
