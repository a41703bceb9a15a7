package api_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/api"
)

type daemon struct{}

var when = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (daemon) Status() api.Status {
	return api.Status{Version: "v1", PID: 7, Started: when, Now: when, Node: "a", Mode: "tun", Network: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Features: map[string]string{"gso": "off: old kernel"}, Apply: api.Apply{Failures: 2, Error: "no", Retry: when}, Problems: []api.Problem{{Node: "b", Text: "t"}}}
}
func (daemon) Nodes() []api.Node                { return nil }
func (daemon) Choice(string) (api.Choice, bool) { return api.Choice{}, false }
func (daemon) Peers() []api.Peer {
	return []api.Peer{{Node: "b", Endpoint: netip.MustParseAddrPort("[2001:db8::1]:4789"), TxPackets: 1 << 60}}
}
func (daemon) Routes() []api.Route {
	return []api.Route{{Prefix: netip.MustParsePrefix("fd00::/64"), Self: true}}
}
func (daemon) Lanes() []api.Lane {
	return []api.Lane{{Name: "out/0", Stages: []api.Stage{{Name: "route", Drops: map[string]uint64{"no-route": 3}}}}}
}

// Capture writes two blocks, of which the second comes in pieces, and the rest when it is told to end.
func (daemon) Capture(ctx context.Context, r api.CaptureRequest, w io.Writer, flush func() error) (api.CaptureSummary, error) {
	if r.Filter == "bad" {
		return api.CaptureSummary{}, &api.Error{Code: api.CodeInvalid, Text: "no such filter"}
	}
	w.Write(block("one"))
	w.Write(block("second")[:9])
	flush()
	<-ctx.Done()
	if r.Filter == "broken" {
		panic(http.ErrAbortHandler)
	}
	w.Write(block("second")[9:])
	return api.CaptureSummary{Frames: r.Count, Lost: 3}, nil
}

// block is a pcapng block of no known type.
func block(text string) []byte {
	n := 12 + (len(text)+3)&^3
	b := make([]byte, n)
	copy(b[8:], text)
	binary.LittleEndian.PutUint32(b[4:], uint32(n))
	binary.LittleEndian.PutUint32(b[n-4:], uint32(n))
	return b
}

// TestCapture: the end of the client's context ends the file, not the connection; what breaks off leaves whole blocks.
func TestCapture(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path)
	c := api.NewClient(path)
	defer c.Close()
	for filter, want := range map[string]struct {
		file []byte
		err  string
	}{
		"":       {append(block("one"), block("second")...), ""},
		"broken": {block("one"), "ended early"},
		"bad":    {nil, "no such filter"},
	} {
		var file bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		s, err := c.Capture(ctx, api.CaptureRequest{Filter: filter, Count: 1 << 60, For: time.Hour, SnapLen: 9, Drops: true}, &file, cancel)
		cancel()
		if !bytes.Equal(file.Bytes(), want.file) {
			t.Errorf("%q: the file is %q, want %q", filter, file.Bytes(), want.file)
		}
		if want.err == "" && (err != nil || s != api.CaptureSummary{Frames: 1 << 60, Lost: 3}) || want.err != "" && (err == nil || !strings.Contains(err.Error(), want.err)) {
			t.Errorf("%q: %+v, %v", filter, s, err)
		}
	}
	// Without a client's doing the time that was asked for ends it.
	if s, err := c.Capture(t.Context(), api.CaptureRequest{Count: 7, For: time.Millisecond}, io.Discard, func() {}); err != nil || s.Frames != 7 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := api.NewClient(filepath.Join(t.TempDir(), "none")).Capture(t.Context(), api.CaptureRequest{}, io.Discard, func() {}); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

// serve starts a server; stop ends it and returns what Serve returned.
func serve(t *testing.T, path string) (stop func() error) {
	t.Helper()
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l, daemon{}, podless{}) }()
	stop = func() error { cancel(); err := <-done; done <- err; return err }
	t.Cleanup(func() { stop() })
	return stop
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "weft.sock")
	serve(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v: want mode 0600", info.Mode(), err)
	}
	c := api.NewClient(path)
	defer c.Close()
	ctx := t.Context()
	if s, err := c.Status(ctx); err != nil || !reflect.DeepEqual(s, daemon{}.Status()) {
		t.Errorf("status %+v, %v", s, err)
	}
	if n, err := c.Nodes(ctx); err != nil || n == nil || len(n) != 0 {
		t.Errorf("nodes %v, %v: a list is never null", n, err)
	}
	if p, err := c.Peers(ctx); err != nil || !reflect.DeepEqual(p, daemon{}.Peers()) {
		t.Errorf("peers %+v, %v", p, err)
	}
	if r, err := c.Routes(ctx); err != nil || !reflect.DeepEqual(r, daemon{}.Routes()) {
		t.Errorf("routes %+v, %v", r, err)
	}
	if l, err := c.Lanes(ctx); err != nil || !reflect.DeepEqual(l, daemon{}.Lanes()) {
		t.Errorf("lanes %+v, %v", l, err)
	}
}

func TestUnknownIsAnAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serve(t, path)
	h := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	defer h.CloseIdleConnections()
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://weft/v1/nonsense", nil)
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %s, %s", method, resp.Status, resp.Header.Get("Content-Type"))
		}
	}
}

func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, path := range []string{filepath.Join(dir, "absent"), dead} {
		c := api.NewClient(path)
		_, err := c.Status(t.Context())
		if !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "http://") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestDeadSocketIsReplacedLiveOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	stop := serve(t, path)
	if _, err := api.Listen(path); !errors.Is(err, api.ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("a live socket: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("Serve returned %v at the end of its context", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
	serve(t, path)
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "x" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if _, err := api.Listen(filepath.Join(path, "below")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a directory that cannot be made: %v", err)
	}
}
