package probe

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"time"
)

// Version names the control protocol. Both ends must speak the same one.
const Version = "weft.bench/2"

// Bounds of what a client may ask a server for.
const (
	maxFlows    = 128
	maxDuration = time.Hour
	maxPayload  = 65507
	maxLine     = 64 << 10
	maxSessions = 16
)

// The control protocol: one JSON object a line over TCP, client and server in turn.
//
//	client                                server
//	hello {version, job}          ─►
//	                              ◄─      ready {port, token}      (or error)
//	  … data connections to port, each introduced by a header …
//	start {payload}               ─►                               TCP roles: all connections are made
//	                              ◄─      ready
//	count {trial, sent}           ─►                               UDP sink, as often as wanted
//	                              ◄─      counts                   TCP sink: unasked, when the duration is over
//	stop                          ─►
//	                              ◄─      counts                   the totals; then the server closes
type message struct {
	Type    string `json:"type"`
	Version string `json:"version,omitempty"`
	Job     *job   `json:"job,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	Token   uint64 `json:"token,omitempty"`
	Payload int    `json:"payload,omitempty"`

	Paths []mixedPath `json:"paths,omitempty"` // of test mixed: ready has the ports, start the payloads

	Trial  uint16  `json:"trial,omitempty"`
	Sent   uint64  `json:"sent,omitempty"`
	Counts *counts `json:"counts,omitempty"`
	Error  string  `json:"error,omitempty"`
}

const (
	msgHello  = "hello"
	msgReady  = "ready"
	msgStart  = "start"
	msgCount  = "count"
	msgCounts = "counts"
	msgStop   = "stop"
	msgError  = "error"
)

// job is what the client wants the server to be.
type job struct {
	Role       string `json:"role"`
	Flows      int    `json:"flows"`   // TCP connections to expect
	Payload    int    `json:"payload"` // largest datagram, UDP roles
	GRO        bool   `json:"gro"`     // UDP sink: take super-packets whole
	DurationMS int64  `json:"duration_ms"`
	Blind      bool   `json:"blind,omitempty"` // payloads are not verified
	Congestion string `json:"congestion"`      // TCP roles

	Rate   float64 `json:"rate,omitempty"`   // mixed: payload bit/s that each end offers
	Family int     `json:"family,omitempty"` // mixed: 4, 6, 0 = both
}

// What a server can be.
const (
	roleTCPSink   = "tcp-sink"   // reads and counts
	roleTCPEcho   = "tcp-echo"   // one connection, answers each payload with one of the same number
	roleTCPAccept = "tcp-accept" // answers one byte on each new connection
	roleUDPSink   = "udp-sink"   // counts trials
	roleUDPEcho   = "udp-echo"   // answers each datagram with one of the same number
	roleMixed     = "mixed"      // the other end of everything at once
)

// counts is what the server saw.
type counts struct {
	Packets    uint64 `json:"packets"` // distinct datagrams, or requests
	Duplicates uint64 `json:"duplicates"`
	Reordered  uint64 `json:"reordered"`
	Bytes      uint64 `json:"bytes"`   // payload
	Replies    uint64 `json:"replies"` // echo roles: answers the kernel took
	SpanNS     int64  `json:"span_ns"` // first to last arrival
	Overflow   uint64 `json:"overflow"`
	Strangers  uint64 `json:"strangers"` // datagrams that came before the session's first
	Integrity
	Intervals []Interval `json:"intervals,omitempty"`
	Shapes    []Shape    `json:"shapes,omitempty"`
}

var congestionName = regexp.MustCompile(`^[a-z0-9_-]{1,15}$`)

func (j *job) validate() error {
	if j == nil {
		return errors.New("hello without a job")
	}
	switch j.Role {
	case roleMixed:
		if !(j.Rate >= mixedRate.Min && j.Rate <= mixedRate.Max) {
			return fmt.Errorf("rate %v: must be between %v and %v", j.Rate, mixedRate.Min, mixedRate.Max)
		}
		if j.Family != 0 && j.Family != 4 && j.Family != 6 {
			return fmt.Errorf("family %d: must be 4, 6, or 0 for both", j.Family)
		}
		if j.Flows != tcpFlows {
			return fmt.Errorf("flows %d: the test has %d TCP connections a family", j.Flows, tcpFlows)
		}
		fallthrough
	case roleTCPSink, roleTCPEcho, roleTCPAccept:
		if !congestionName.MatchString(j.Congestion) {
			return fmt.Errorf("congestion control %q is not a name", j.Congestion)
		}
		if j.Flows < 1 || j.Flows > maxFlows {
			return fmt.Errorf("flows %d: must be between 1 and %d", j.Flows, maxFlows)
		}
	case roleUDPSink, roleUDPEcho:
		if j.Payload < probeHeader || j.Payload > maxPayload {
			return fmt.Errorf("payload %d: must be between %d and %d", j.Payload, probeHeader, maxPayload)
		}
	default:
		return fmt.Errorf("unknown role %q", j.Role)
	}
	if j.DurationMS < 1 || j.DurationMS > maxDuration.Milliseconds() {
		return fmt.Errorf("duration %d ms: must be between 1 ms and %s", j.DurationMS, maxDuration)
	}
	return nil
}

func (j *job) duration() time.Duration { return time.Duration(j.DurationMS) * time.Millisecond }

// decode reads one line. Unknown fields are errors: versions are equal or not spoken at all.
func decode(line []byte) (message, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return message{}, fmt.Errorf("not a control message: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return message{}, errors.New("not a control message: more than one value on a line")
	}
	if m.Type == "" {
		return message{}, errors.New("not a control message: it has no type")
	}
	return m, nil
}

// control is one end of a control connection. One goroutine reads, one writes.
type control struct {
	net.Conn
	in *bufio.Reader
}

func newControl(c net.Conn) *control { return &control{c, bufio.NewReaderSize(c, maxLine)} }

// write sends one message within a few seconds.
func (c *control) write(m message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode control message: %w", err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	_, err = c.Write(append(line, '\n'))
	return err
}

// read waits for one message.
func (c *control) read() (message, error) {
	line, err := c.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return message{}, fmt.Errorf("not a control message: longer than %d bytes", maxLine)
	}
	if err != nil {
		return message{}, err
	}
	return decode(line)
}

// controlTimeout is how long one end waits for the other where nothing is being measured.
const controlTimeout = 5 * time.Second
