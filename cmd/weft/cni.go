package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
	"weft/control/kubernetes"
	"weft/internal/config"
	"weft/internal/wholefile"
)

// The plugin's binary and configuration, as container runtimes look for them.
const (
	pluginName   = "weft-cni"
	pluginModule = "weft/cnibin" // as the binary itself says
	conflistName = "10-weft.conflist"
	binDirectory = "/opt/cni/bin"
	confDir      = "/etc/cni/net.d"
)

// newCNICommand is `weft cni`.
func newCNICommand() *cobra.Command {
	c := &cobra.Command{Use: "cni", Short: "The CNI plugin, through which container runtimes attach pods"}
	c.AddCommand(newCNIInstallCommand(), newCNIUninstallCommand())
	return c
}

// cniReport is what install and uninstall print.
type cniReport struct {
	Written []string `json:"written"`
	Removed []string `json:"removed"`
	Notes   []string `json:"notes"` // what an operator should know
}

func (r cniReport) print(c *cobra.Command, form format) error {
	for _, list := range []*[]string{&r.Written, &r.Removed, &r.Notes} {
		if *list == nil {
			*list = []string{}
		}
	}
	return show(c.OutOrStdout(), form, r, func(w io.Writer) {
		for _, f := range r.Written {
			fmt.Fprintln(w, "wrote", f)
		}
		for _, f := range r.Removed {
			fmt.Fprintln(w, "removed", f)
		}
		for _, n := range r.Notes {
			fmt.Fprintln(w, "note:", n)
		}
		if len(r.Written)+len(r.Removed) == 0 {
			fmt.Fprintln(w, "nothing to do")
		}
	})
}

func newCNIInstallCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "install",
		Short: "Set up the CNI plugin for the container runtimes of this node",
		Long: `Copy weft-cni into the runtimes' directory of plugins, by rename, so that it may be in use; then,
once the daemon can attach pods, write ` + conflistName + ` with the plugins of --chain behind it. Runtimes take a
node for ready for pods as soon as that file is there. One that says something else is kept, as ` + conflistName + `.before. It offers CNI 1.1.0 where all plugins of the chain know
it, else 1.0.0. It is harmless to repeat.

In a cluster's pods it runs with --plugins-only before the daemon does, which then writes that file itself
(weft daemon --cni-conf-dir). --reference brings plugins of --chain along: they are copied where the directory
lacks them, or has some that do not know CNI 1.1.0.`,
		Example: "  weft cni install --wait 5m\n  weft cni install --bin-dir /usr/lib/cni --chain portmap",
		Args:    cobra.NoArgs,
	}
	bin, conf := cniFlags(c)
	plugin := c.Flags().String("plugin", "", `the weft-cni to copy ("" = beside this command)`)
	chain := c.Flags().StringSlice("chain", []string{"portmap", "bandwidth"}, `plugins to run after it ("" = none): portmap, bandwidth`)
	wait := c.Flags().Duration("wait", 0, "how long to wait for the daemon to be ready for pods")
	reference := c.Flags().String("reference", "", `directory of plugins of --chain, and loopback, to copy where they are missing or too old ("" = none)`)
	only := c.Flags().Bool("plugins-only", false, "copy plugins, and write no configuration")
	kubelet := c.Flags().String("kubelet-conf", "", "kubelet's kubeconfig, from which to write down where the API server is, for a daemon before kube-proxy; may be absent")
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if _, err := conflist(*socket, *chain, nil); err != nil {
			return usageError{err}
		}
		versions := []string{"1.0.0", "1.1.0"}
		var r cniReport
		if *reference != "" {
			// Runtimes bring lo up by the reference plugin for that; containerd below 2.0 takes no pod without it.
			for _, p := range append(slices.Clone(*chain), "loopback") {
				if err := r.bring(c.Context(), filepath.Join(*reference, p), filepath.Join(*bin, p)); err != nil {
					return err
				}
			}
		}
		if *kubelet != "" {
			if err := r.writeDirect(*kubelet, kubernetes.DirectFile); err != nil {
				return err
			}
		}
		for _, p := range *chain {
			if _, err := os.Stat(filepath.Join(*bin, p)); err != nil {
				return fmt.Errorf("plugin %s of --chain: %w: install the reference plugins (Debian: containernetworking-plugins, in /usr/lib/cni), or leave it out of --chain", p, err)
			}
			known, err := pluginVersions(c.Context(), filepath.Join(*bin, p))
			if err != nil {
				return err
			}
			if !slices.Contains(known, "1.1.0") {
				versions = versions[:1]
				r.Notes = append(r.Notes, fmt.Sprintf("%s does not know CNI 1.1.0: without it runtimes call neither GC nor STATUS; install newer reference plugins, or leave it out of --chain", p))
			}
		}
		from := *plugin
		if from == "" {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this command's directory: %w: say where weft-cni is by --plugin", err)
			}
			from = filepath.Join(filepath.Dir(self), pluginName)
		}
		if !isPlugin(from) {
			return fmt.Errorf("%s is not the plugin weft-cni: build it by `make build`, or say where it is by --plugin", from)
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return fmt.Errorf("read the plugin: %w", err)
		}
		if err := r.write(filepath.Join(*bin, pluginName), data, 0o755); err != nil {
			return err
		}
		if *only {
			return r.print(c, *form)
		}
		if err := waitForPods(c.Context(), *socket, *wait); err != nil {
			return errors.Join(r.print(c, *form), err)
		}
		list, err := conflist(*socket, *chain, versions)
		if err != nil {
			return err
		}
		if err := r.writeConflist(filepath.Join(*conf, conflistName), list); err != nil {
			return err
		}
		r.noteEarlier(*conf)
		return r.print(c, *form)
	}
	return c
}

func newCNIUninstallCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the CNI plugin away from this node",
		Long: `Remove ` + conflistName + ` where it names weft-cni, then the plugin where it is weft's: files of others of
the same names stay. Pods that are attached stay so, but their runtime can only detach them while the
plugin is there: drain the node first.`,
		Args: cobra.NoArgs,
	}
	bin, conf := cniFlags(c)
	form := formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		var r cniReport
		err := errors.Join(r.remove(filepath.Join(*conf, conflistName), isConflist), r.remove(filepath.Join(*bin, pluginName), isPlugin))
		return errors.Join(r.print(c, *form), err)
	}
	return c
}

func cniFlags(c *cobra.Command) (bin, conf *string) {
	bin = c.Flags().String("bin-dir", binDirectory, "where the runtimes have their plugins")
	conf = c.Flags().String("conf-dir", confDir, "where the runtimes have their network configurations")
	return bin, conf
}

// pluginVersions asks a plugin which versions of CNI it knows.
func pluginVersions(ctx context.Context, file string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ask := exec.CommandContext(ctx, file)
	ask.Env = []string{"CNI_COMMAND=VERSION"}
	ask.Stdin = strings.NewReader(`{"cniVersion": "1.0.0"}`)
	out, err := ask.Output()
	var answer struct {
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil {
		return nil, fmt.Errorf("ask plugin %s which versions of CNI it knows: %w: is it a CNI plugin? Else leave it out of --chain", file, err)
	}
	return answer.SupportedVersions, nil
}

// conflist is the configuration for the runtimes. Those whose library knows cniVersions take the
// newest, older ones cniVersion: every plugin of the chain is called in the version taken.
func conflist(socket string, chain, versions []string) ([]byte, error) {
	own := map[string]any{"type": pluginName, "capabilities": map[string]bool{"ips": true, "mac": true}}
	if socket != config.DefaultSocket {
		own["socket"] = socket
	}
	plugins := []any{own}
	for _, p := range chain {
		switch p {
		case "portmap":
			plugins = append(plugins, map[string]any{"type": p, "snat": true, "capabilities": map[string]bool{"portMappings": true}})
		case "bandwidth":
			plugins = append(plugins, map[string]any{"type": p, "capabilities": map[string]bool{"bandwidth": true}})
		default:
			return nil, fmt.Errorf("--chain %s: write portmap, bandwidth or both; for others edit the file", p)
		}
	}
	text, err := json.MarshalIndent(struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions"`
		Name        string   `json:"name"`
		Plugins     []any    `json:"plugins"`
	}{"1.0.0", versions, "weft", plugins}, "", "  ")
	return append(text, '\n'), err
}

// waitForPods returns once the daemon can attach pods. It asks at least once.
func waitForPods(ctx context.Context, socket string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		s, err := ask(ctx, socket, (*api.Client).PodStatus)
		if err == nil && s.Ready {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("the daemon cannot attach pods: %s", s.Reason)
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s is not written: %w; --wait waits for it", conflistName, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// bring copies a plugin where there is none, or one that does not know CNI 1.1.0: without that no runtime calls GC and
// STATUS of the chain. One that does is somebody's choice, and stays.
func (r *cniReport) bring(ctx context.Context, from, to string) error {
	if known, err := pluginVersions(ctx, to); err == nil && slices.Contains(known, "1.1.0") {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("plugin of --reference: %w", err)
	}
	return r.write(to, data, 0o755)
}

// writeDirect writes down where the API server is that a kubeconfig names. Without the kubeconfig it is not known.
func (r *cniReport) writeDirect(kubeconfig, file string) error {
	server, err := kubernetes.ServerOf(kubeconfig)
	if errors.Is(err, fs.ErrNotExist) {
		r.Notes = append(r.Notes, kubeconfig+" is not there: the API server is reached through its Service, or by control.kubernetes.server")
		return nil
	}
	if err != nil {
		return err
	}
	return r.write(file, []byte(server+"\n"), 0o644)
}

// writeConflist writes the runtimes' configuration. What else was there stays beside it, by a name that no runtime reads: somebody may
// have edited it.
func (r *cniReport) writeConflist(file string, list []byte) error {
	had, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read what is there: %w", err)
	}
	if err == nil && !bytes.Equal(had, list) {
		backup := file + ".before"
		if err := r.write(backup, had, 0o644); err != nil {
			return err
		}
		r.Notes = append(r.Notes, fmt.Sprintf("%s said something else, and is kept as %s: put back what you had edited, or add the plugins again", file, backup))
	}
	return r.write(file, list, 0o644)
}

// write puts a file in place by rename, where it is not there as it should be.
func (r *cniReport) write(file string, data []byte, mode fs.FileMode) (err error) {
	if had, err := os.ReadFile(file); err == nil && bytes.Equal(had, data) {
		if info, err := os.Stat(file); err == nil && info.Mode().Perm() == mode {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	// Runtimes read every *.conflist and *.conf of the directory: half written, it must not be there.
	if err := wholefile.Install(file, mode, data); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	r.Written = append(r.Written, file)
	return nil
}

// remove removes a file that is ours.
func (r *cniReport) remove(file string, ours func(string) bool) error {
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !ours(file) {
		r.Notes = append(r.Notes, file+" is not weft's, and stays")
		return nil
	}
	if err := os.Remove(file); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	r.Removed = append(r.Removed, file)
	return nil
}

// noteEarlier tells of configurations that runtimes take instead of ours: the first by name.
func (r *cniReport) noteEarlier(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.Notes = append(r.Notes, err.Error())
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".conf", ".conflist", ".json"}, ext) && e.Name() < conflistName {
			r.Notes = append(r.Notes, fmt.Sprintf("%s comes before %s: runtimes take it instead", filepath.Join(dir, e.Name()), conflistName))
		}
	}
}

// isPlugin says whether a file is a weft-cni, by what the Go toolchain has written into it.
func isPlugin(file string) bool {
	info, err := buildinfo.ReadFile(file)
	return err == nil && info.Path == pluginModule
}

// isConflist says whether a network configuration names weft-cni.
func isConflist(file string) bool {
	data, err := os.ReadFile(file)
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err != nil || json.Unmarshal(data, &list) != nil {
		return false
	}
	return slices.ContainsFunc(list.Plugins, func(p struct {
		Type string `json:"type"`
	}) bool {
		return p.Type == pluginName
	})
}
