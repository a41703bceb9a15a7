package hostnet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
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
)

// watch says why a device's changes concern us.
type watch uint8

const (
	unwatched watch = iota
	underlay        // named in Want.Watch: its state, MTU and addresses matter
	ours            // named in Want.Links: everything about it does
)

// Run keeps what the owners want in force until ctx ends: whatever anybody else removes or changes is put back, soon after netlink
// tells of it, and at the latest after a second (more where a look at everything takes longer than 10 ms). It tells the owners
// (Changed) when it has looked, and when a device named in a Want.Watch has changed: then their plans may be others. Run fails when
// the kernel's notifications cannot be had at all.
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
	notify()
	h.listening.Store(true)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.follow(ctx, listener, notify)
	}()
	defer func() {
		cancel()
		<-ended
	}()

	timer := time.NewTimer(belt)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			h.doubt.Store(true)
		case <-news:
			if !sleep(ctx, settle) {
				return nil
			}
			select {
			case <-news: // of the same burst
			default:
			}
			h.mu.Lock()
			doubtful := h.doubtful()
			h.mu.Unlock()
			if !doubtful { // the burst was our own, or undid itself
				continue
			}
		}
		start := time.Now()
		h.repair()
		h.tell()
		took := max(time.Since(start), time.Duration(h.whole.Load())) // an owner may have been at it too
		if !sleep(ctx, spacing) {
			return nil
		}
		timer.Reset(max(belt, share*took) - spacing)
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

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// follow reads notifications until ctx ends, opening a new socket when one breaks.
func (h *Host) follow(ctx context.Context, listener *nl.NetlinkSocket, notify func()) {
	defer h.listening.Store(false)
	for ctx.Err() == nil {
		if listener == nil {
			var err error
			if listener, err = h.listen(); err != nil {
				h.log.Warn("cannot listen for kernel changes; checking every second", zap.Error(err))
				if !sleep(ctx, belt) {
					return
				}
				continue
			}
			h.doubt.Store(true)
			notify()
			h.listening.Store(true)
		}
		err := h.read(ctx, listener, notify)
		h.listening.Store(false)
		listener.Close()
		listener = nil
		if ctx.Err() == nil {
			h.log.Info("listening for kernel changes again", zap.Error(err))
		}
	}
}

// read passes on what concerns us until the socket breaks or ctx ends.
func (h *Host) read(ctx context.Context, listener *nl.NetlinkSocket, notify func()) error {
	stop := context.AfterFunc(ctx, listener.Close)
	defer stop()
	for {
		news, from, err := listener.Receive()
		if errors.Is(err, unix.ENOBUFS) {
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
				h.doubt.Store(true)
				notify()
			} else if h.surprising(m) {
				notify()
			}
		}
	}
}

// listen opens a socket for notifications. The library's Subscribe functions would be a socket for each kind,
// which ends when the kernel drops a notification.
func (h *Host) listen() (*nl.NetlinkSocket, error) {
	runtime.LockOSThread() // the namespace is the thread's
	defer runtime.UnlockOSThread()
	ns, err := h.elsewhere()
	if err != nil {
		return nil, err
	}
	listener, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("hostnet: subscribe to kernel changes: %w", err)
	}
	// Room for a burst; what does not fit is noticed (ENOBUFS) and costs one Apply.
	_ = listener.SetReceiveBufferSize(1<<20, false)
	return listener, nil
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

// concerns says whether a notification may be about our links and addresses or the underlay's, or cannot be read.
func (h *Host) concerns(m syscall.NetlinkMessage) bool {
	watched := func(index int) watch {
		if set := h.watched.Load(); set != nil {
			return (*set)[index]
		}
		return unwatched
	}
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := netlink.LinkDeserialize(nil, m.Data)
		return err != nil || watched(l.Attrs().Index) != unwatched || Owned(l.Attrs().Name)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return watched(int(nl.DeserializeIfAddrmsg(m.Data).Index)) != unwatched
	}
	return false
}
