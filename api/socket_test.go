package api

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLongPath: a socket's folder may have a longer name than fits into an address. All is as with a short one, and no descriptor stays open.
func TestLongPath(t *testing.T) {
	if MaxSocketName != 85 { // which package config allows
		t.Errorf("a socket's name may have %d bytes", MaxSocketName)
	}
	path := filepath.Join(t.TempDir(), strings.Repeat("f", 200), strings.Repeat("s", MaxSocketName))
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := 0
	for round := range 3 { // the second one finds what a killed daemon left
		if round == 1 { // by then Go's poller has its own
			before = open()
		}
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the socket: %v, %v", info, err)
		}
		if _, err := Listen(path); !errors.Is(err, ErrInUse) {
			t.Errorf("a second daemon: %v", err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				c.Close()
			}
		}()
		c, err := dial(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		inner := l.(*listener).Listener.(*net.UnixListener)
		inner.SetUnlinkOnClose(false)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a closed listener leaves its socket: %v", err)
	}
	if now := open(); now > before { // the collector may have closed others'
		t.Errorf("%d descriptors are open, %d were", now, before)
	}
	if _, err := dial(t.Context(), path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where there is no socket: %v", err)
	}
}
