package testbed

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"weft/perf/machine"
)

// grace is how long a process may take to end by itself after SIGTERM.
const grace = 3 * time.Second

// Process is one child of the lab, inside a namespace.
type Process struct {
	Name string // as in reports: weft-a, bench
	Log  string // file that holds what it wrote to stderr (and stdout, unless that is taken)

	cmd  *exec.Cmd
	done chan struct{} // closed once the process has been waited for
	err  error         // from Wait; valid after done
}

// Start runs argv inside the namespace, in a process group of its own (a Ctrl-C on the terminal is
// the lab's to handle), and has the kernel kill it should the lab die. stdout nil sends stdout to
// the log too.
func (ns *Namespace) Start(name, log string, stdout io.Writer, argv ...string) (*Process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("testbed: log of %s: %w", name, err)
	}
	defer file.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = file, file
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	if err := ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("testbed: start %s: %w", name, err)
	}
	ns.processes = append(slices.DeleteFunc(ns.processes, func(p *Process) bool { return p.Ended() != nil }), p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// StartReady is Start, and waits until the process says that it is ready: until it writes to its
// standard output for the first time.
func (ns *Namespace) StartReady(ctx context.Context, name, log string, argv ...string) (*Process, error) {
	said := &firstWrite{done: make(chan struct{})}
	p, err := ns.Start(name, log, said, argv...)
	if err != nil {
		return nil, err
	}
	select {
	case <-said.done:
		return p, nil
	case <-p.Done():
		return nil, p.Ended()
	case <-ctx.Done():
		p.Stop(context.Background())
		return nil, fmt.Errorf("testbed: %s does not say that it is ready: %w", name, ctx.Err())
	}
}

// firstWrite closes done when something is written to it for the first time.
type firstWrite struct {
	once sync.Once
	done chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.done) })
	return len(p), nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process, or of ctx, and then stops it. A process that failed is an
// *ExitError.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Stop(context.Background())
		return ctx.Err()
	}
	if p.err != nil {
		return p.exitError()
	}
	return nil
}

// ExitError is a process that ended when it should not have, or not well.
type ExitError struct {
	Name string
	Code int    // exit code; -1 when a signal ended it
	Last string // its last words: the end of its log
}

func (e *ExitError) Error() string {
	if e.Last == "" {
		return fmt.Sprintf("%s ended with code %d and said nothing", e.Name, e.Code)
	}
	return fmt.Sprintf("%s ended with code %d: %s", e.Name, e.Code, e.Last)
}

// Ended returns an *ExitError if the process is no longer there, for whatever reason.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		return p.exitError()
	default:
		return nil
	}
}

func (p *Process) exitError() error {
	return &ExitError{Name: p.Name, Code: p.cmd.ProcessState.ExitCode(), Last: lastLine(p.Log)}
}

// Stop asks the process and its children to end, and kills them when the process has not ended
// within the grace or ctx.
func (p *Process) Stop(ctx context.Context) {
	if p.Ended() != nil {
		return
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	p.signal(syscall.SIGKILL)
	<-p.done
}

// signal is for the whole process group. ESRCH, the only error there can be, means that it has ended.
func (p *Process) signal(s syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, s) }

// CPUTime is processor time by kind.
type CPUTime = machine.CPUTime

// CPU is the processor time the process has used so far, all threads, and what it has started and not waited for: its process group.
func (p *Process) CPU() (CPUTime, error) {
	select {
	case <-p.done:
		return CPUTime{User: p.cmd.ProcessState.UserTime(), System: p.cmd.ProcessState.SystemTime()}, nil
	default:
	}
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return CPUTime{}, err
	}
	var sum CPUTime
	there := false
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		group, used, err := parseStat(data)
		if err != nil {
			return CPUTime{}, err
		}
		if group == p.cmd.Process.Pid {
			sum, there = sum.Plus(used), true
		}
	}
	if !there {
		return CPUTime{}, fmt.Errorf("testbed: processor time of %s: no such process", p.Name)
	}
	return sum, nil
}

// parseStat reads the process group and the time of /proc/<pid>/stat.
func parseStat(data []byte) (group int, used CPUTime, err error) {
	return machine.ParseGroupStat(data)
}

// lastLine is the last line of a file that is not empty, at most 400 bytes of it.
func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	text := strings.TrimSpace(string(data))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = text[i+1:]
	}
	if len(text) > 400 {
		text = text[:400] + "…"
	}
	return text
}
