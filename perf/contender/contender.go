// Package contender is the list of what the lab can compare: ways to join the pods of a testbed's
// nodes. Each is a row of Rows; weft's own modes are real daemons, one process a node.
package contender

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"weft/catalog/mode"
	"weft/perf/site"
	"weft/perf/testbed"
)

// Contender is one way to carry packets between nodes.
type Contender struct {
	Name   string       // as people name it, cipher included: tun-gso+aes-256-gcm
	About  string       // what it stands for, one line
	Cipher string       // none, or the name of one
	Super  bool         // hands the kernel super-packets (GSO): what it drops as one may be many
	Lanes  bool         // forwards by lanes of weft, whose stages can be slowed on purpose
	MaxMTU int          // the largest underlay MTU it carries, bytes; 0 = all that the lab has
	Needs  func() error // nil, or why this machine cannot run it, in one sentence
	Up     func(context.Context, Env) (Overlay, error)
}

// Env is what a contender is brought up in.
type Env struct {
	Bed    *testbed.Bed
	Weft   string // the weft binary to run daemons with
	Queues int    // queue pairs of a lane-based mode; 0 = by cores
	// Of an instance between real hosts: only one of the Bed's nodes is on this host.
	Outside string // file of the network namespace that packets to the other nodes leave by; "" = the node's own
	VNI     uint32 // 0 = the default
	Port    uint16 // UDP port of the tunnel, sealed or not; 0 = the default
	Secret  string // of sealed traffic; "" = the lab's, which everybody knows
	Fault   string // STAGE:TIME, a stage slowed on purpose in modes with lanes; "" = none
}

// Overlay is a contender that is up. The testbed's Close takes down what it made and started.
type Overlay interface {
	// InnerMTU is the largest packet a pod may send, in bytes.
	InnerMTU() int
	// Processes are the contender's own, named as in reports.
	Processes() []*testbed.Process
	// Lanes reads the packet counters of every lane of every node, since the lanes began; none
	// where the kernel carries the packets.
	Lanes(context.Context) ([]Lane, error)
	// Drops reads what the kernel dropped around the lanes as far as only the contender's own sockets tell.
	Drops(context.Context) (Drops, error)
}

// Downer is an Overlay that leaves more than the testbed takes away.
type Downer interface {
	// Down undoes what Up did. It is called once, before the testbed closes.
	Down() error
}

// What contenders count is in the words of sites.
type (
	Lane  = site.Lane
	Stage = site.Stage
	Drops = site.Drops
)

// UnsupportedError is a contender this machine, or this build of weft, cannot run.
type UnsupportedError = site.UnsupportedError

// Fits says why the contender cannot run over an underlay of an MTU, which is known before it is tried.
func (c Contender) Fits(mtu int) error {
	if c.MaxMTU > 0 && mtu > c.MaxMTU {
		return &UnsupportedError{Reason: fmt.Sprintf("an underlay MTU of %d: the frames of AF_XDP sockets carry at most %d here: give --mtu %d or less", mtu, c.MaxMTU, c.MaxMTU)}
	}
	return nil
}

// Parse reads a list of names, `bare,vxlan,tun-gso+aes-256-gcm`.
func Parse(list string) ([]Contender, error) {
	var found []Contender
	for name := range strings.SplitSeq(list, ",") {
		c, err := parse(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(found, func(f Contender) bool { return f.Name == c.Name }) {
			return nil, fmt.Errorf("contender %s is named twice", c.Name)
		}
		found = append(found, c)
	}
	return found, nil
}

func parse(name string) (Contender, error) {
	if strings.HasPrefix(name, execPrefix) {
		return execContender(name)
	}
	presets := Presets()
	if i := slices.IndexFunc(presets, func(p Preset) bool { return p.Name == name }); i >= 0 {
		c, err := parse(presets[i].Contender)
		c.Name, c.About = name, presets[i].About
		return c, err
	}
	base, cipher, sealed := strings.Cut(name, "+")
	rows := Rows()
	i := slices.IndexFunc(rows, func(r Row) bool { return r.Name == base })
	if i < 0 {
		names := make([]string, len(rows))
		for i, r := range rows {
			names[i] = r.Name
		}
		for _, p := range presets {
			names = append(names, p.Name)
		}
		return Contender{}, fmt.Errorf("unknown contender %q: there are %s, and exec:FILE", base, strings.Join(names, ", "))
	}
	if sealed && !rows[i].Sealable {
		return Contender{}, fmt.Errorf("contender %q: %s takes no cipher", name, base)
	}
	if sealed && !slices.Contains(mode.Ciphers(), cipher) {
		return Contender{}, fmt.Errorf("contender %q: unknown cipher %q: there are %s", name, cipher, strings.Join(mode.Ciphers(), ", "))
	}
	if !sealed {
		cipher = "none"
	}
	return rows[i].contender(name, cipher), nil
}
