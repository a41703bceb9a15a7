package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"weft/backend"
	"weft/catalog"
	"weft/catalog/mode"
	"weft/control/kubernetes"
	"weft/internal/config"
	"weft/node/daemon"
)

// newDaemonCommand is `weft daemon`: the process that carries a node's traffic.
func newDaemonCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Run the node's daemon",
		Long: `Run the node's daemon in the foreground until SIGTERM or SIGINT. It logs to standard error: text
on a terminal, JSON lines elsewhere. Without a terminal SIGHUP makes it look at the configuration
again, whose changes it names and which need a restart, and put the cluster's state in force again.
Under systemd it says when it is ready, and how it is (NOTIFY_SOCKET, WATCHDOG_USEC). When it ends, what the kernel forwards by itself stays, and so
does the route that keeps overlay traffic from leaving in clear; 'weft cleanup' removes them.`,
		Example: "  weft daemon --config /etc/weft/weft.yaml\n  weft daemon --check",
		Args:    cobra.NoArgs,
	}
	file := configFlag(c)
	slow := c.Flags().String("fault", "", "to try a measurement: STAGE:TIME, a stage that takes longer for each packet, vxlan:100ns say")
	outside := c.Flags().String("underlay-netns", "", "have the underlay in another network namespace than pods and routes: its file (bench starts contenders so)")
	_ = c.Flags().MarkHidden("underlay-netns")
	check := c.Flags().Bool("check", false, "only read the configuration and the nodes, report every mistake, and exit")
	var pod podFlags
	pod.add(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		crashBySignal()
		log := newLog(c.ErrOrStderr())
		defer func() { _ = log.Sync() }() // standard error cannot be synced everywhere
		if !*check {
			if err := pod.prepare(); err != nil {
				return err
			}
		}
		inForce := digest(*file) // before it is read: a change of later is one
		find := func() (*config.Config, daemon.Parts, error) { return loadPatiently(c.Context(), *file, log) }
		if *check {
			find = func() (*config.Config, daemon.Parts, error) { return load(*file) }
		}
		cfg, parts, err := find()
		if err != nil {
			return err
		}
		if *slow != "" {
			fault, err := backend.ParseFault(*slow)
			if err != nil {
				return usageError{err}
			}
			parts.Backend = faulty(parts.Backend, fault)
		}
		if *outside != "" {
			over, err := backend.OpenOutside(*outside, log)
			if err != nil {
				return err
			}
			parts.Backend = leavingBy(parts.Backend, over)
		}
		if *check {
			if err := errors.Join(checkKeys(cfg), daemon.Check(cfg, parts, zap.NewNop())); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c.OutOrStdout(), "%s is good\n", *file)
			return err
		}
		if !term.IsTerminal(int(os.Stdin.Fd())) { // there it says that the terminal has gone
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			parts.Reload = reload
		}
		parts.Reread = func() (*config.Config, error) { fresh, _, err := load(*file); return fresh, err }
		return pod.run(c.Context(), *file, inForce, cfg, parts, log)
	}
	return c
}

// crashBySignal has the process die by SIGABRT when it crashes, or when a watchdog sends that. The Go runtime would end it with exit
// code 2 in either case, which says that the configuration is wrong: a service manager would not start it again. No core is
// left unless somebody wants one (GOTRACEBACK=crash and a limit): keys would be in it.
func crashBySignal() {
	if os.Getenv("GOTRACEBACK") != "crash" {
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_CORE, &limit) == nil {
			limit.Cur = 0
			_ = unix.Setrlimit(unix.RLIMIT_CORE, &limit) // to lower it is everybody's right
		}
	}
	debug.SetTraceback("crash")
}

func configFlag(c *cobra.Command) *string {
	return c.Flags().String("config", config.DefaultFile, "the configuration file")
}

// load reads a configuration and finds the parts it names.
func load(file string) (*config.Config, daemon.Parts, error) {
	cfg, err := config.Load(file, catalog.Built())
	if err != nil {
		return nil, daemon.Parts{}, configError{err}
	}
	if err := cfg.Detect(config.Host{Name: os.Hostname, NodeName: os.Getenv("NODE_NAME"), CPUs: runtime.NumCPU()}); err != nil {
		return nil, daemon.Parts{}, configError{err}
	}
	if err := findNetwork(cfg); err != nil {
		if errors.Is(err, kubernetes.ErrNoNetwork) {
			err = configError{err}
		}
		return nil, daemon.Parts{}, err
	}
	source, ok := catalog.SourceByKind(cfg.Control.Kind)
	var uses []catalog.Use
	for _, m := range cfg.Modes {
		made, known := catalog.ModeByName(m.Name)
		uses, ok = append(uses, catalog.Use{Mode: made, Port: m.Port}), ok && known
	}
	if !ok { // the configuration was held against the same lists
		return nil, daemon.Parts{}, fmt.Errorf("mode %s, control %s: not in the catalog", strings.Join(mode.Names(cfg.Modes), ", "), cfg.Control.Kind)
	}
	return cfg, daemon.Parts{Backend: func(s backend.Settings) (backend.Backend, error) { return catalog.Backend(s, uses...) },
		Source: source.New, Policies: catalog.Policies, Servers: catalog.Servers, Version: version().String()}, nil
}

// checkKeys reads the keys and the password that a daemon with this configuration would.
func checkKeys(cfg *config.Config) error {
	if cfg.Control.Kind == "mesh" {
		if err := catalog.CheckMesh(cfg); err != nil {
			return configError{err}
		}
	}
	if cfg.Encryption.Cipher == config.CipherNone {
		return nil
	}
	if err := catalog.CheckKeys(cfg.Encryption.KeyFile, cfg.Encryption.PSKFile); err != nil {
		return configError{err}
	}
	return nil
}

// faulty makes a backend with a stage slowed on purpose.
func faulty(open func(backend.Settings) (backend.Backend, error), fault *backend.Fault) func(backend.Settings) (backend.Backend, error) {
	return func(s backend.Settings) (backend.Backend, error) {
		s.Fault = fault
		return open(s)
	}
}

// leavingBy makes a backend whose packets leave in another network namespace.
func leavingBy(open func(backend.Settings) (backend.Backend, error), outside *backend.Outside) func(backend.Settings) (backend.Backend, error) {
	return func(s backend.Settings) (backend.Backend, error) {
		s.Outside = outside
		s.Host.Underlay(outside.Host)
		return open(s)
	}
}

// configError is an error of the configuration file, whatever its kind.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

// ExitCode implements what exitCode asks for.
func (configError) ExitCode() int { return exitUsage }

// newLog makes the daemon's logger: for eyes on a terminal, JSON lines for machines.
func newLog(w io.Writer) *zap.Logger {
	var encoder zapcore.Encoder
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		e := zap.NewDevelopmentEncoderConfig()
		e.EncodeLevel = zapcore.CapitalColorLevelEncoder
		e.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		encoder = zapcore.NewConsoleEncoder(e)
	} else {
		e := zap.NewProductionEncoderConfig()
		e.TimeKey, e.EncodeTime, e.EncodeDuration = "time", zapcore.RFC3339NanoTimeEncoder, zapcore.StringDurationEncoder
		encoder = zapcore.NewJSONEncoder(e)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), zap.InfoLevel))
}
