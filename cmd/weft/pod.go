package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/control/kubernetes"
	"weft/internal/backoff"
	"weft/internal/config"
	"weft/node/daemon"
)

// podFlags are what a daemon does besides where it runs in a pod of the cluster whose network it is: deploy/kubernetes
// sets them.
type podFlags struct {
	conflist string // directory, as seen from the pod; "" = nothing is written
	sysctls  bool
	follow   bool
}

// digest of a file is zero where it cannot be read.
func digest(file string) [32]byte {
	data, err := os.ReadFile(file)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(data)
}

func (p *podFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&p.conflist, "cni-conf-dir", "", "keep "+conflistName+" in this directory from when pods can be attached")
	c.Flags().BoolVar(&p.sysctls, "writable-sysctls", false, "make /proc/sys writable for this process first, as a container that is not privileged needs it (CAP_SYS_ADMIN)")
	c.Flags().BoolVar(&p.follow, "follow-config", false, "begin anew with a configuration that has changed and is good; one that is not changes nothing")
}

// prepare does what has to be done before the daemon begins.
func (p *podFlags) prepare() error {
	if p.sysctls {
		if err := writableSysctls("/proc/sys"); err != nil {
			return err
		}
	}
	if p.conflist != "" {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("look at this process's mounts: %w", err)
		}
		return seesNamespaces(string(mounts))
	}
	return nil
}

// writableSysctls undoes what container runtimes do to /proc/sys: they mount it over itself, read-only. What is writable
// below is what this process's capabilities let it write: CAP_NET_ADMIN is for net/.
func writableSysctls(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if fs.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make %s writable: %w: give the container CAP_SYS_ADMIN, and AppArmor's profile Unconfined, or make it privileged", dir, err)
	}
	return nil
}

// namespaces is where container runtimes mount the network namespaces of pods; /var/run is the same on every machine.
const namespaces = "/run/netns"

// seesNamespaces says whether what a runtime mounts below namespaces from now on is seen in a mount namespace with these
// mounts (proc_pid_mountinfo(5)): pods are attached by such paths, and all fails but the daemon's own readiness where not.
func seesNamespaces(mountinfo string) error {
	best, propagated := "", false
	for line := range strings.Lines(mountinfo) {
		before, _, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 6 {
			continue
		}
		at := strings.TrimPrefix(fields[4], "/var")
		if (at == namespaces || at == "/run") && len(at) >= len(best) {
			best, propagated = at, false
			for _, f := range fields[6:] {
				propagated = propagated || strings.HasPrefix(f, "shared:") || strings.HasPrefix(f, "master:")
			}
		}
	}
	if !propagated {
		return configError{errors.New("pods' network namespaces, which the container runtime mounts in " + namespaces +
			", will not be seen here: mount the node's " + namespaces + " there, with mountPropagation: HostToContainer")}
	}
	return nil
}

// keepConflist writes the runtimes' configuration once the daemon can attach pods, and again where it is removed or
// changed, until ctx ends.
func keepConflist(ctx context.Context, dir, socket string, log *zap.Logger) {
	list, err := conflist(socket, []string{"portmap", "bandwidth"}, []string{"1.0.0", "1.1.0"})
	if err != nil {
		log.Error("no configuration for container runtimes", zap.Error(err))
		return
	}
	file, said := filepath.Join(dir, conflistName), ""
	for pause := time.Second; ; {
		err := waitForPods(ctx, socket, 0)
		if err == nil {
			var r cniReport
			if err = r.write(file, list, 0o644); err == nil && len(r.Written) > 0 {
				r.noteEarlier(dir)
				log.Info("container runtimes are told that pods can be attached", zap.String("file", file), zap.Strings("notes", r.Notes))
			}
			pause = 10 * time.Second
		}
		if err != nil && err.Error() != said && ctx.Err() == nil {
			log.Info("pods cannot be attached yet", zap.Error(err))
			said = err.Error()
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// errChanged ends a daemon that begins anew.
var errChanged = errors.New("the configuration has changed")

// followConfig ends the daemon by stop once the file, of which it has the digest in force, says something else that is good.
func followConfig(ctx context.Context, file string, inForce [32]byte, every time.Duration, stop context.CancelCauseFunc, log *zap.Logger) {
	last := inForce
	for backoff.Sleep(ctx, every) {
		now := digest(file)
		if now == last || now == ([32]byte{}) {
			continue
		}
		if last = now; now == inForce {
			continue
		}
		fresh, _, err := load(file)
		if err == nil {
			err = checkKeys(fresh)
		}
		if err != nil {
			log.Error("the configuration has changed and is wrong: the one before stays in force", zap.String("file", file), zap.Error(err))
			continue
		}
		log.Info("the configuration has changed: beginning anew with it", zap.String("file", file))
		stop(errChanged)
		return
	}
}

// run runs daemons one after another, each with the configuration that its file then has, until one ends for another
// reason than that this has changed.
func (p *podFlags) run(ctx context.Context, file string, inForce [32]byte, cfg *config.Config, parts daemon.Parts, log *zap.Logger) error {
	for {
		life, stop := context.WithCancelCause(ctx)
		if p.conflist != "" {
			go keepConflist(life, p.conflist, cfg.API.Socket, log)
		}
		if p.follow {
			go followConfig(life, file, inForce, 2*time.Second, stop, log)
		}
		err := daemon.Run(life, cfg, parts, log)
		again := errors.Is(context.Cause(life), errChanged) && ctx.Err() == nil
		stop(nil)
		if err != nil || !again {
			return err
		}
		reload, reread := parts.Reload, parts.Reread
		inForce = digest(file)
		if cfg, parts, err = load(file); err != nil {
			return err
		}
		parts.Reload, parts.Reread = reload, reread
	}
}

// findNetwork asks the cluster for the prefixes that the configuration leaves to it.
func findNetwork(cfg *config.Config) error {
	if len(cfg.Network.Prefixes) > 0 {
		return nil
	}
	k := cfg.Control.Kubernetes
	network, why, err := kubernetes.FindNetwork(context.Background(), kubernetes.Settings{Kubeconfig: k.Kubeconfig, Server: k.Server})
	if err != nil {
		return err
	}
	cfg.DetectedNetwork(network, why)
	return nil
}

// loadPatiently is load, again and again while the configuration is good and the API server that it leaves something to
// does not answer.
func loadPatiently(ctx context.Context, file string, log *zap.Logger) (*config.Config, daemon.Parts, error) {
	again := backoff.Backoff{First: 200 * time.Millisecond, Most: 5 * time.Second}
	for {
		cfg, parts, err := load(file)
		if err == nil || isConfigError(err) {
			return cfg, parts, err
		}
		pause := again.Next()
		log.Warn("the cluster's prefixes are not known yet, trying again", zap.Error(err), zap.Duration("in", pause))
		if !backoff.Sleep(ctx, pause) {
			return nil, daemon.Parts{}, err
		}
	}
}

func isConfigError(err error) bool {
	var c configError
	return errors.As(err, &c)
}
