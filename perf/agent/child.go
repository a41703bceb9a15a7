package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weft/perf/machine"
	"weft/perf/probe"
)

// Order is what a generator process is told, on its standard input: one of the three.
type Order struct {
	Serve *probe.Config `json:"serve,omitempty"`
	Run   *probe.Spec   `json:"run,omitempty"`
	Path  *probe.Spec   `json:"path,omitempty"`
}

// Answer is what it says, on its standard output: one line. A server says it when clients can connect.
type Answer struct {
	Error  string         `json:"error,omitempty"`
	Listen netip.AddrPort `json:"listen,omitzero"`
	Result *probe.Result  `json:"result,omitempty"`
	MTU    int            `json:"mtu,omitempty"`
}

// Generator is the life of a generator process: it obeys one order and ends, at the latest when its standard input does, which is when
// whoever gave the order has gone.
func Generator(ctx context.Context, in io.Reader, out io.Writer) error {
	var order Order
	d := json.NewDecoder(in)
	if err := d.Decode(&order); err != nil {
		return fmt.Errorf("the order: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, in)
	}()
	say := func(a Answer, err error) error {
		if err != nil {
			a = Answer{Error: err.Error()}
		}
		return json.NewEncoder(out).Encode(a)
	}
	switch {
	case order.Serve != nil:
		order.Serve.Ready = func(at netip.AddrPort) { _ = say(Answer{Listen: at}, nil) }
		if err := probe.Serve(ctx, *order.Serve); err != nil {
			return say(Answer{}, err)
		}
		return nil
	case order.Run != nil:
		r, err := probe.Run(ctx, *order.Run)
		return say(Answer{Result: &r}, err)
	case order.Path != nil:
		mtu, err := probe.PathMTU(ctx, *order.Path)
		return say(Answer{MTU: mtu}, err)
	}
	return errors.New("the order says nothing")
}

// place is where a child is started: a thread in a network namespace, which lives as long as the place, because a child's parent-death
// signal fires when the thread that forked it dies (prctl(2), PR_SET_PDEATHSIG).
type place interface {
	Do(func() error) error
}

// here is a place in the agent's own namespaces.
type here struct{ calls chan func() }

// newHere starts the thread. Its children may use cores processors at most; 0 = all that the agent may.
func newHere(cores int) (*here, error) {
	h := &here{make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: its affinity is for children
		ready <- narrow(cores)
		for call := range h.calls {
			call()
		}
	}()
	return h, <-ready
}

// narrow keeps the calling thread, and what it starts, to the first so many processors that it may use.
func narrow(cores int) error {
	if cores == 0 {
		return nil
	}
	first, err := processors(cores)
	if err != nil {
		return err
	}
	var want unix.CPUSet
	for _, cpu := range first {
		want.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return fmt.Errorf("keep to %d processors: %w", cores, err)
	}
	return nil
}

// processors are the first so many that this process may use; nil = all.
func processors(cores int) (first []int, err error) {
	if cores == 0 {
		return nil, nil
	}
	var have unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &have); err != nil {
		return nil, fmt.Errorf("processors: %w", err)
	}
	for cpu := 0; cpu < 1024 && len(first) < cores; cpu++ {
		if have.IsSet(cpu) {
			first = append(first, cpu)
		}
	}
	return first, nil
}

// Do implements place.
func (h *here) Do(f func() error) error {
	done := make(chan error)
	h.calls <- func() { done <- f() }
	return <-done
}

func (h *here) close() { close(h.calls) }

// child is a generator process.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	answer chan Answer // gets one, or is closed when the process has ended
	done   chan struct{}
	words  *tail
}

// spawn starts a generator at a place.
func spawn(at place, program string, o Order) (*child, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(program, "bench", "generator"), answer: make(chan Answer, 1), done: make(chan struct{}), words: &tail{}}
	// In a process group of its own: a Ctrl-C on the agent's terminal is the agent's to handle.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = c.words
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := at.Do(c.cmd.Start); err != nil {
		return nil, fmt.Errorf("start a generator: %w", err)
	}
	c.stdin = in
	_, err = in.Write(append(data, '\n'))
	go func() {
		defer close(c.done)
		defer close(c.answer)
		var a Answer
		if err := json.NewDecoder(out).Decode(&a); err == nil {
			c.answer <- a
		}
		_, _ = io.Copy(io.Discard, out)
		_ = c.cmd.Wait() // ProcessState says it
	}()
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("order a generator: %w", err)
	}
	return c, nil
}

// await waits for the child's answer, until ctx ends; then there is no child any more.
func (c *child) await(ctx context.Context) (Answer, error) {
	select {
	case a, ok := <-c.answer:
		switch {
		case !ok:
			return a, fmt.Errorf("the generator ended and said: %s", c.words)
		case a.Error != "":
			return a, errors.New(a.Error)
		}
		return a, nil
	case <-ctx.Done():
		c.stop()
		return Answer{}, ctx.Err()
	}
}

// stop ends the child.
func (c *child) stop() {
	_ = c.stdin.Close()
	select {
	case <-c.done:
		return
	case <-time.After(time.Second):
	}
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // ESRCH, the only error there can be, means that it has ended
	<-c.done
}

// used is the processor time of a child, also of one that has ended.
func (c *child) used() machine.CPUTime {
	select {
	case <-c.done:
		return machine.CPUTime{User: c.cmd.ProcessState.UserTime(), System: c.cmd.ProcessState.SystemTime()}
	default:
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return machine.CPUTime{}
	}
	t, _ := machine.ParseStat(data)
	return t
}

// tail keeps the last words of a process.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if n := len(t.text) - 400; n > 0 {
		t.text = t.text[n:]
	}
	return len(b), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.text)) }
