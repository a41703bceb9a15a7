// Command weft-cni is the CNI plugin: it reads what the container runtime asks for, has the daemon of
// this node do it, and prints the result. It keeps nothing itself. The protocol is CNI 0.3.0 to 1.1.0
// (https://github.com/containernetworking/cni/blob/main/SPEC.md), with every command of 1.1.0.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// versions are those of the protocol that a configuration may ask for.
var versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

const about = "weft-cni attaches pods to a weft network. A container runtime calls it; `weft cni install` sets it up."

func main() { os.Exit(run(os.Stdout)) }

// run serves one call, described by the environment and standard input, and returns the exit code.
func run(stdout io.Writer) int {
	asked, err := prepare()
	if err == nil {
		funcs := skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status}
		err = skel.PluginMainFuncsWithError(funcs, version.PluginSupports(versions...), about)
	}
	if err == nil {
		return 0
	}
	text, _ := json.MarshalIndent(failure{asked, err.Code, err.Msg, err.Details}, "", "    ") // strings and a number
	fmt.Fprintf(stdout, "%s\n", text)
	return 1
}

// failure is how an error is printed. The library's own type lacks cniVersion, which the
// specification wants.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// prepare looks ahead into standard input for the version in which to answer errors, also those that
// the library finds, and completes the environment. A call without a command and VERSION do not read
// standard input: nobody may be writing to it.
func prepare() (asked string, failed *types.Error) {
	newest := versions[len(versions)-1]
	command := os.Getenv("CNI_COMMAND")
	if command == "" || command == "VERSION" {
		return newest, nil
	}
	if command == "STATUS" && os.Getenv("CNI_PATH") == "" {
		// The specification makes it optional, the library does not. Plugins live beside each other.
		if self, err := os.Executable(); err == nil {
			os.Setenv("CNI_PATH", filepath.Dir(self))
		}
	}
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return newest, types.NewError(types.ErrIOFailure, fmt.Sprintf("read the configuration from standard input: %v", err), "")
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	asked = newest
	if json.Unmarshal(data, &conf) == nil && slices.Contains(versions, conf.CNIVersion) {
		asked = conf.CNIVersion
	}
	r, w, err := os.Pipe()
	if err != nil {
		return asked, types.NewError(types.ErrIOFailure, fmt.Sprintf("make a pipe: %v", err), "")
	}
	go func() { // a configuration for GC may be larger than the pipe
		defer w.Close()
		io.Copy(w, bytes.NewReader(data)) // the library has ended where this fails
	}()
	os.Stdin = r
	return asked, nil
}
