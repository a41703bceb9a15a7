// Package nettest is internal/netlab for tests: namespaces and clusters that end with the test, what a test needs
// of the machine, and waiting for conditions.
package nettest

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"weft/internal/netlab"
)

// testPrefix starts the names of all namespaces that tests make.
const testPrefix = "weft-test"

// counter numbers this process's namespaces.
var counter atomic.Uint32

// NS is a namespace of a test, and what Start began in it. Safe for concurrent use.
type NS struct {
	*netlab.NS

	mu    sync.Mutex
	procs []*Process
}

// Create makes a namespace named <prefix>-<pid>-<n>, with lo up. Close removes it.
func Create(prefix string) (*NS, error) {
	ns, err := netlab.Create(prefix, strconv.FormatUint(uint64(counter.Add(1)), 10))
	if err != nil {
		return nil, err
	}
	return &NS{NS: ns}, nil
}

// Close kills what Start began here and removes the namespace with all its devices. Idempotent.
func (ns *NS) Close() error {
	ns.mu.Lock()
	procs := ns.procs
	ns.procs = nil
	ns.mu.Unlock()
	for _, p := range procs {
		p.Kill()
	}
	return ns.NS.Close()
}

// Run runs a command inside the namespace and returns its standard output and error together. The error names
// the command and quotes the output.
func (ns *NS) Run(name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := ns.StartCmd(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", ns.Name(), strings.Join(cmd.Args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}

// End is one end of a veth pair: a device in a namespace with addresses.
type End struct {
	NS    *NS
	Dev   string
	Addrs []netip.Prefix
}

// Join is netlab.Join.
func Join(a, b End, mtu int) error {
	return netlab.Join(netlab.End{NS: a.NS.NS, Dev: a.Dev, Addrs: a.Addrs}, netlab.End{NS: b.NS.NS, Dev: b.Dev, Addrs: b.Addrs}, mtu)
}

// Sweep removes namespaces <prefix>-<pid>-… whose process is gone, and kills what still runs in them. It returns
// the names it removed. Folders of that name among the temporary ones go, too. Others sweeping at the same time do no harm.
func Sweep(prefix string) ([]string, error) {
	names, err := netlab.Find(netlab.Dir, prefix, netlab.Dead)
	if err != nil {
		return nil, err
	}
	errs := []error{netlab.Remove(names...)}
	dirs, err := netlab.Find(os.TempDir(), prefix, netlab.Dead)
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(filepath.Join(os.TempDir(), dir)))
	}
	return names, errors.Join(append(errs, err)...)
}
