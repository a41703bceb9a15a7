// Package agent is the process that measures on a real host for somebody else: it listens on one port, knows whom to believe
// (Identity), runs the lab's load generators and instances of contenders as children of its own, and nothing else. Client is the other end.
//
// What a client cannot do, whatever it says: have anything run but the tests; have load sent to an address that has not proven, over the
// path itself, that it expects it (package probe); exceed the limits that the agent was started with; leave anything behind.
package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// Version names the protocol. Both ends must speak the same one.
const Version = "weft.agent/2"

// maxLine bounds a message, bytes. A generator's result with all its trials is far below.
const maxLine = 4 << 20

// request is what a client asks: one JSON object a line, answered by one reply.
type request struct {
	Op       string       `json:"op"`
	Version  string       `json:"version,omitempty"`
	Setup    string       `json:"setup,omitempty"` // a contender
	Open     *OpenOrder   `json:"open,omitempty"`
	Target   *Target      `json:"target,omitempty"`
	Generate *TestOrder   `json:"generate,omitempty"`
	Serve    *ServeChoice `json:"serve,omitempty"`
}

// Operations.
const (
	opHello    = "hello"    // first of all
	opServe    = "serve"    // start the generators' server
	opStop     = "stop"     // end it
	opPath     = "path"     // prove a server, and say what the path to it carries
	opGenerate = "generate" // run a test
	opCount    = "count"    // read counters and processor times
	opOpen     = "open"     // bring a contender up
	opShut     = "shut"     // take it down
)

// ServeChoice says where a server should listen.
type ServeChoice struct {
	At netip.Addr `json:"at"` // an address of this host; the zero Addr = the contender's own
}

// Target is a server that the near end is to measure against.
type Target struct {
	At     netip.AddrPort `json:"at"`
	Key    []byte         `json:"key"`              // that the far agent gave
	Source netip.Addr     `json:"source,omitempty"` // where to send from
}

// TestOrder is one test.
type TestOrder struct {
	Test       string        `json:"test"`
	Params     probe.Params  `json:"params"`
	Duration   time.Duration `json:"duration_ns"`
	Congestion string        `json:"congestion"`
	Limit      probe.Limit   `json:"limit"` // of what this end sends, besides the agent's own
}

// OpenOrder is an instance of a contender: this host's place among all that are joined.
type OpenOrder struct {
	Self   int    `json:"self"`
	Slot   int    `json:"slot"` // which of the ports and networks it has; the same on every host
	Nodes  []Node `json:"nodes"`
	Secret []byte `json:"secret"` // of sealed contenders; of this run alone
}

// Node is a host as the instances know it.
type Node struct {
	Name     string     `json:"name"`
	Endpoint netip.Addr `json:"endpoint"` // in the underlay
}

type reply struct {
	Error       string       `json:"error,omitempty"`
	Unsupported bool         `json:"unsupported,omitempty"` // the error is that this host cannot run the contender
	Welcome     *Welcome     `json:"welcome,omitempty"`
	Served      *Target      `json:"served,omitempty"`
	Path        *PathFound   `json:"path,omitempty"`
	Generated   *Generated   `json:"generated,omitempty"`
	Counted     *Counted     `json:"counted,omitempty"`
	Opened      *OpenedSetup `json:"opened,omitempty"`
}

// Welcome is what an agent says of its host.
type Welcome struct {
	Name      string        `json:"name"` // the host's own
	Host      result.Host   `json:"host"`
	Addresses []netip.Addr  `json:"addresses"`
	Limit     probe.Limit   `json:"limit"`
	Longest   time.Duration `json:"longest_ns"` // test
	Cores     int           `json:"cores"`      // that generators may use; 0 = all
	Ports     [2]uint16     `json:"ports"`      // of the generators, control and data
}

// PathFound is what is known of a path.
type PathFound struct {
	MTU int `json:"mtu"` // bytes
}

// Generated is what a test found, and what the generator used.
type Generated struct {
	Result probe.Result    `json:"result"`
	CPU    machine.CPUTime `json:"cpu"`
}

// Counted is a reading of everything around the generators at one end.
type Counted struct {
	Busy  machine.Reading            `json:"busy"`
	Times map[string]machine.CPUTime `json:"times"`
	Lanes []site.Lane                `json:"lanes,omitempty"`
}

// OpenedSetup is a contender that is up.
type OpenedSetup struct {
	InnerMTU  int          `json:"inner_mtu"`
	Addresses []netip.Addr `json:"addresses"` // inside, IPv4 first
}

// line is one end of a control connection. One goroutine reads, one writes.
type line struct {
	net.Conn
	in *bufio.Reader
}

func newLine(c net.Conn) *line { return &line{c, bufio.NewReaderSize(c, 64<<10)} }

func (l *line) write(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := l.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = l.Write(append(data, '\n'))
	return err
}

// read reads one message, which is a line and no longer than it may be.
func (l *line) read() ([]byte, error) {
	var all []byte
	for {
		part, err := l.in.ReadSlice('\n')
		if len(all)+len(part) > maxLine {
			return nil, fmt.Errorf("a message of more than %d bytes", maxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			all = append(all, part...)
			continue
		}
		if err != nil {
			return nil, err
		}
		return append(all, part...), nil
	}
}

// decode reads one message into v. Unknown fields are errors: versions are equal or not spoken at all.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("not a message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("not a message: more than one value on a line")
	}
	return nil
}

// Bounds says what the agent was started with, in words; "" = nothing bounds it.
func (w *Welcome) Bounds() string {
	var all []string
	if text := w.Limit.String(); text != "" {
		all = append(all, text)
	}
	if w.Cores > 0 {
		all = append(all, fmt.Sprintf("at most %d processors", w.Cores))
	}
	return strings.Join(all, ", ")
}
