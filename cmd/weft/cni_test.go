package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"weft/api"
)

// TestCNIInstall builds the plugin, and installs it beside files of others.
func TestCNIInstall(t *testing.T) {
	dir := t.TempDir()
	plugin, bin, conf := filepath.Join(dir, "weft-cni"), filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
	if out, err := exec.Command("go", "build", "-o", plugin, "weft/cnibin").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	socket := filepath.Join(dir, "sock")
	run := func(args ...string) (int, cniReport, string) {
		t.Helper()
		root := newRoot()
		var out, log bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(append(append([]string{"cni"}, args...), "-o", "json", "--bin-dir", bin, "--conf-dir", conf))
		err := execute(t.Context(), root, &log)
		var r cniReport
		if out.Len() > 0 {
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
		}
		return exitCode(err, false), r, log.String()
	}
	install := []string{"install", "--plugin", plugin, "--socket", socket}
	if code, _, log := run(install...); code != exitFailed || !strings.Contains(log, "portmap") || !strings.Contains(log, "containernetworking-plugins") {
		t.Errorf("without the plugins to chain: exit %d: %s", code, log)
	}
	chained := func(name, versions string) {
		t.Helper()
		script := "#!/bin/sh\n[ \"$CNI_COMMAND\" = VERSION ] && echo '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":" + versions + "}'\n"
		if err := errors.Join(os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	chained("portmap", `["0.4.0","1.0.0","1.1.0"]`)
	chained("bandwidth", `no list`)
	if code, _, log := run(install...); code != exitFailed || !strings.Contains(log, "bandwidth") || !strings.Contains(log, "--chain") {
		t.Errorf("a plugin that does not say its versions: exit %d: %s", code, log)
	}
	chained("bandwidth", `["0.4.0","1.0.0","1.1.0"]`)
	if code, _, log := run("install", "--plugin", os.Args[0], "--socket", socket); code != exitFailed || !strings.Contains(log, "--plugin") {
		t.Errorf("another binary as the plugin: exit %d: %s", code, log)
	}
	if code, _, _ := run("install", "--plugin", plugin, "--chain", "flannel"); code != exitUsage {
		t.Errorf("an unknown plugin: exit %d", code)
	}
	// Without a daemon the binary is there, but no configuration: the node is not ready for pods.
	written := filepath.Join(conf, conflistName)
	if code, r, log := run(install...); code != exitUnreachable || !slices.Equal(r.Written, []string{filepath.Join(bin, "weft-cni")}) || !strings.Contains(log, conflistName) {
		t.Errorf("without a daemon: exit %d, %+v: %s", code, r, log)
	}
	if _, err := os.Stat(written); err == nil {
		t.Errorf("%s is there without a daemon", written)
	}

	var ready atomic.Int32
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.PodStatus{Ready: ready.Add(1) > 2, Reason: "not yet"})
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	if code, _, log := run(install...); code != exitFailed || !strings.Contains(log, "not yet") {
		t.Errorf("before the daemon is ready: exit %d: %s", code, log)
	}
	if err := os.MkdirAll(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(conf, "05-other.conf"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, r, log := run(append(install, "--wait", "1m")...)
	if code != 0 || !slices.Equal(r.Written, []string{written}) || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "05-other.conf") {
		t.Fatalf("exit %d, %+v: %s", code, r, log)
	}
	var list struct {
		CNIVersion  string
		CNIVersions []string
		Name        string
		Plugins     []struct {
			Type         string
			Socket       string
			SNAT         bool
			Capabilities map[string]bool
		}
	}
	data, err := os.ReadFile(written)
	if err != nil || json.Unmarshal(data, &list) != nil {
		t.Fatalf("%v: %s", err, data)
	}
	if list.CNIVersion != "1.0.0" || !slices.Equal(list.CNIVersions, []string{"1.0.0", "1.1.0"}) || list.Name != "weft" || len(list.Plugins) != 3 ||
		list.Plugins[0].Type != "weft-cni" || list.Plugins[0].Socket != socket || !list.Plugins[0].Capabilities["ips"] || !list.Plugins[0].Capabilities["mac"] ||
		list.Plugins[1].Type != "portmap" || !list.Plugins[1].SNAT || list.Plugins[2].Type != "bandwidth" || !list.Plugins[2].Capabilities["bandwidth"] {
		t.Errorf("%s", data)
	}
	if code, r, _ := run(install...); code != 0 || len(r.Written) != 0 {
		t.Errorf("again: exit %d, %+v", code, r)
	}
	chained("bandwidth", `["0.4.0","1.0.0"]`)
	code, r, log = run(install...)
	if kept, err := os.ReadFile(written + ".before"); err != nil || !bytes.Equal(kept, data) || len(r.Notes) != 3 || !strings.Contains(r.Notes[1], written+".before") {
		t.Errorf("what was there before: %v, %s; %+v", err, kept, r)
	}
	data, err = os.ReadFile(written)
	if code != 0 || len(r.Notes) != 3 || !strings.Contains(r.Notes[0], "bandwidth does not know CNI 1.1.0") || err != nil || json.Unmarshal(data, &list) != nil || len(list.CNIVersions) != 1 {
		t.Errorf("with a plugin that knows 1.0.0 only: exit %d, %+v: %s\n%s", code, r, log, data)
	}
	for _, d := range []string{bin, conf} {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".tmp") {
				t.Errorf("left: %s", e.Name())
			}
		}
	}

	code, r, _ = run("uninstall")
	if code != 0 || !slices.Equal(r.Removed, []string{written, filepath.Join(bin, "weft-cni")}) {
		t.Errorf("uninstall: exit %d, %+v", code, r)
	}
	// What is not ours stays, under our names too.
	foreign := []string{written, filepath.Join(bin, "weft-cni")}
	for _, f := range foreign {
		if err := os.WriteFile(f, []byte(`{"plugins":[{"type":"bridge"}]}`), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if code, r, _ := run("uninstall"); code != 0 || len(r.Removed) != 0 || len(r.Notes) != 2 {
		t.Errorf("uninstall of what others have: exit %d, %+v", code, r)
	}
	for _, f := range append(foreign, filepath.Join(bin, "portmap"), filepath.Join(conf, "05-other.conf")) {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("a file of others: %v", err)
		}
	}
}
