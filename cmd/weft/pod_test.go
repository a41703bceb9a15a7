package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"weft/api"
	"weft/internal/nettest"
)

// mountinfo of a pod's container, and what the daemon says to it.
func TestSeesNamespaces(t *testing.T) {
	t.Parallel()
	root := "500 400 0:50 / / rw,relatime master:100 - overlay overlay rw\n"
	for name, c := range map[string]struct {
		mounts string
		sees   bool
	}{
		"nothing mounted":     {root + "501 500 0:51 / /run rw - tmpfs tmpfs rw\n", false},
		"without propagation": {root + "502 500 0:22 /netns /run/netns rw,nosuid - tmpfs tmpfs rw\n", false},
		"HostToContainer":     {root + "502 500 0:22 /netns /run/netns rw,nosuid master:9 - tmpfs tmpfs rw\n", true},
		"Bidirectional":       {root + "502 500 0:22 /netns /var/run/netns rw shared:9 master:3 - tmpfs tmpfs rw\n", true},
		"all of /run":         {root + "502 500 0:22 / /run rw master:9 - tmpfs tmpfs rw\n", true},
		"hidden again":        {root + "502 500 0:22 / /run rw master:9 - tmpfs tmpfs rw\n503 502 0:60 / /run/netns rw - tmpfs tmpfs rw\n", false},
		"another folder":      {root + "502 500 0:22 /netns /run/netns2 rw master:9 - tmpfs tmpfs rw\n", false},
	} {
		if err := seesNamespaces(c.mounts); (err == nil) != c.sees || err != nil && (!isConfigError(err) || !strings.Contains(err.Error(), "HostToContainer")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The configuration for runtimes is there once pods can be attached, not before, and comes back.
func TestKeepConflist(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "sock"), filepath.Join(dir, conflistName)
	var ready atomic.Bool
	var asked atomic.Int32
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		json.NewEncoder(w).Encode(api.PodStatus{Ready: ready.Load(), Reason: "not yet"})
	})}
	go s.Serve(l)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan bool)
	go func() { keepConflist(ctx, dir, socket, zaptest.NewLogger(t)); close(done) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	nettest.Eventually(t, time.Minute, func() error {
		if asked.Load() == 0 {
			return errors.New("nobody asked")
		}
		return nil
	})
	if _, err := os.Stat(file); err == nil {
		t.Error("it is there before pods can be attached")
	}
	ready.Store(true)
	there := func() error {
		if !isConflist(file) {
			return errors.New("it is not there")
		}
		return nil
	}
	nettest.Eventually(t, time.Minute, there)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, time.Minute, there)
}

// A daemon ends for a configuration that has changed and is good, and for no other.
func TestFollowConfig(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "weft.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("network: 10.244.0.0/16\n")
	life, stop := context.WithCancelCause(t.Context())
	t.Cleanup(func() { stop(nil) })
	core, logs := observer.New(zap.InfoLevel)
	go followConfig(life, file, digest(file), time.Millisecond, stop, zap.New(core))
	told := func(what string) {
		t.Helper()
		nettest.Eventually(t, time.Minute, func() error {
			if logs.FilterMessageSnippet(what).Len() == 0 {
				return fmt.Errorf("told %v, want %q", logs.All(), what)
			}
			return nil
		})
	}
	write("network: nonsense\n")
	told("is wrong: the one before stays in force")
	if life.Err() != nil {
		t.Error("a mistake ends the daemon")
	}
	write("network: 10.245.0.0/16\n")
	told("beginning anew")
	<-life.Done()
	if !errors.Is(context.Cause(life), errChanged) {
		t.Error(context.Cause(life))
	}
}

// What the init container of the pod does: plugins, the chain's too, and where the API server is; no configuration.
func TestCNIInstallPlugins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plugin, bin, conf, reference := filepath.Join(dir, "weft-cni"), filepath.Join(dir, "bin"), filepath.Join(dir, "net.d"), filepath.Join(dir, "reference")
	if out, err := exec.Command("go", "build", "-o", plugin, "weft/cnibin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := func(name, versions string) {
		t.Helper()
		text := "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":" + versions + "}'\n"
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	const old, fresh, others = `["0.4.0","1.0.0"]`, `["1.0.0","1.1.0"]`, `["1.1.0","1.2.0"]`
	script(filepath.Join(reference, "portmap"), fresh)
	script(filepath.Join(reference, "bandwidth"), fresh)
	script(filepath.Join(reference, "loopback"), fresh)
	script(filepath.Join(bin, "portmap"), old)      // is replaced
	script(filepath.Join(bin, "bandwidth"), others) // is somebody's choice
	install := []string{"cni", "install", "--plugin", plugin, "--reference", reference, "--plugins-only", "--bin-dir", bin, "--conf-dir", conf, "--kubelet-conf", filepath.Join(dir, "none")}
	if out, _, code := weftMain(t.Context(), install...); code != 0 || !strings.Contains(out, "control.kubernetes.server") {
		t.Fatalf("exit %d: %s", code, out)
	}
	known := map[string][]string{}
	for _, p := range []string{"portmap", "bandwidth", "loopback"} {
		v, err := pluginVersions(t.Context(), filepath.Join(bin, p))
		if err != nil {
			t.Fatal(err)
		}
		known[p] = v
	}
	if !slices.Equal(known["portmap"], []string{"1.0.0", "1.1.0"}) || !slices.Equal(known["bandwidth"], []string{"1.1.0", "1.2.0"}) || len(known["loopback"]) != 2 || !isPlugin(filepath.Join(bin, "weft-cni")) {
		t.Errorf("%v", known)
	}
	if _, err := os.Stat(conf); err == nil {
		t.Error("there is a configuration")
	}
	if out, _, code := weftMain(t.Context(), install...); code != 0 || strings.Contains(out, "wrote") {
		t.Errorf("again: exit %d: %s", code, out)
	}
}

// --check reads the keys that the daemon would read, and says of them what the daemon would.
func TestCheckReadsKeys(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	dir := t.TempDir()
	conf, password := filepath.Join(dir, "weft.yaml"), filepath.Join(dir, "password")
	text := fmt.Sprintf("network: 10.244.0.0/16\nmode: tun-gso\nencryption: {cipher: auto, psk_file: %s, key_file: %s}\n", password, filepath.Join(dir, "key"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(want int, says string) {
		t.Helper()
		if out, errs, code := weftMain(t.Context(), "daemon", "--check", "--config", conf); code != want || !strings.Contains(out+errs, says) {
			t.Errorf("exit %d, want %d and %q: %s%s", code, want, says, out, errs)
		}
	}
	check(exitUsage, "encryption.psk_file")
	for _, c := range []struct {
		text string
		mode os.FileMode
		code int
		says string
	}{{"short", 0o600, exitUsage, "bytes"}, {"long enough a password", 0o644, exitUsage, "others may read it"}, {"long enough a password", 0o600, exitDone, "is good"}} {
		if err := errors.Join(os.WriteFile(password, []byte(c.text), 0o600), os.Chmod(password, c.mode)); err != nil {
			t.Fatal(err)
		}
		check(c.code, c.says)
	}
}
