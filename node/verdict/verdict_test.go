package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/policy"
)

// ownInode is the inode of this process's network namespace.
func ownInode(t *testing.T) uint64 {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &s); err != nil {
		t.Fatal(err)
	}
	return s.Ino
}

// serve answers as if this process were a pod's, and asks.
func serve(t *testing.T, o Options) (ask func(query string) (int, map[string]any)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d", "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	o.Log = zap.NewNop()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, o) }()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func(query string) (int, map[string]any) {
		t.Helper()
		resp, err := client.Get("http://weft/v1/verdict?" + query)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer := map[string]any{}
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		return resp.StatusCode, answer
	}
}

var pod = Pod{"shop", "web", []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}

// TestVerdicts: a caller is told whether connections of its own pod are allowed, and nothing else.
func TestVerdicts(t *testing.T) {
	inode := ownInode(t)
	ask := serve(t, Options{PodOf: func(is uint64) (Pod, bool) { return pod, is == inode },
		Allowed: func(q policy.Traffic) (bool, error) {
			return q.Protocol == policy.TCP && q.Port == 80 && (q.Dst == netip.MustParseAddr("10.0.0.2") || q.Src == netip.MustParseAddr("fd00::2")), nil
		}})
	for query, want := range map[string]struct {
		code    int
		allowed any
	}{
		"src=10.0.0.1&dst=10.0.0.2&port=80":        {200, true},
		"dst=10.0.0.2&port=tcp/80":                 {200, true},
		"dst=10.0.0.2&port=tcp/81":                 {200, false},
		"src=fd00::2&port=80":                      {200, true},
		"src=fd00::3&dst=fd00::1&port=80":          {200, false},
		"src=::ffff:10.0.0.1&dst=10.0.0.2&port=80": {200, true},
		"src=10.0.0.3&dst=10.0.0.2&port=80":        {403, nil}, // somebody else's
		"port=80":                                  {400, nil},
		"dst=10.0.0.2&port=nine":                   {400, nil},
		"dst=ten&port=80":                          {400, nil},
		"src=10.0.0.1&dst=fd00::1&port=80":         {400, nil},
	} {
		code, answer := ask(query)
		if code != want.code || answer["allowed"] != want.allowed || code == 200 && len(answer) != 1 {
			t.Errorf("%s: %d %v, want %+v", query, code, answer, want)
		}
	}
}

// TestStrangers: who is in no pod of this node is told nothing.
func TestStrangers(t *testing.T) {
	ask := serve(t, Options{PodOf: func(uint64) (Pod, bool) { return Pod{}, false }, Allowed: func(policy.Traffic) (bool, error) { return true, nil }})
	if code, answer := ask("src=10.0.0.1&dst=10.0.0.2&port=80"); code != 403 || answer["allowed"] != nil {
		t.Errorf("%d %v", code, answer)
	}
}

// TestTooMany: who opens many connections has so many and no more, and takes none from others.
func TestTooMany(t *testing.T) {
	var who atomic.Pointer[Pod]
	path := filepath.Join(t.TempDir(), "d", "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, l, Options{Log: zap.NewNop(), PodOf: func(uint64) (Pod, bool) { p := who.Load(); return *p, p.Name != "" }, Allowed: func(policy.Traffic) (bool, error) { return true, nil }})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	// ask says whether it was answered; the connection stays.
	ask := func() (net.Conn, bool) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("GET /v1/verdict?dst=10.0.0.2&port=80 HTTP/1.1\r\nHost: weft\r\n\r\n"))
		n, _ := c.Read(make([]byte, 16))
		return c, n > 0
	}
	other := pod
	other.Name = "other"
	for _, p := range []*Pod{&pod, {}} { // strangers are one
		who.Store(p)
		var open []net.Conn
		for i := range perCaller {
			c, answered := ask()
			if !answered {
				t.Fatalf("%q: connection %d is not answered", p.Name, i)
			}
			open = append(open, c)
		}
		if c, answered := ask(); answered {
			c.Close()
			t.Errorf("%q: one more is answered", p.Name)
		}
		who.Store(&other)
		c, answered := ask()
		if !answered {
			t.Errorf("%q takes others' places", p.Name)
		}
		c.Close()
		who.Store(p)
		for _, c := range open {
			c.Close()
		}
		nettest.Eventually(t, nettest.Patience, func() error {
			c, answered := ask()
			c.Close()
			if !answered {
				return errors.New("places are not given back")
			}
			return nil
		})
	}
}

// TestDirectoryOfOthers: where others may write, they could put a socket of theirs in this one's place.
func TestDirectoryOfOthers(t *testing.T) {
	dir := t.TempDir()
	for mode, refused := range map[os.FileMode]bool{0o777: true, 0o775: true, 0o755: false, 0o700: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		l, err := Listen(filepath.Join(dir, "s"))
		if (err != nil) != refused || refused && !strings.Contains(err.Error(), "chmod go-w") {
			t.Errorf("mode %v: %v", mode, err)
		}
		if err == nil {
			l.Close()
		}
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add("10.0.0.1", "10.0.0.2", "80")
	f.Add("", "fd00::2", "proto/47")
	f.Fuzz(func(t *testing.T, src, dst, port string) {
		q, err := question(pod, func(name string) string { return map[string]string{"src": src, "dst": dst, "port": port}[name] })
		if err == nil && (!q.Src.IsValid() || q.Src.Is4() != q.Dst.Is4()) {
			t.Error(q)
		}
	})
}
