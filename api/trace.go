package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// Traced is what became of one packet in one lane.
type Traced struct {
	Time      time.Time `json:"time"`
	Node      string    `json:"node"`
	Lane      string    `json:"lane"`      // "out/0": from this node's pods to the underlay; "in/0": the other way; "policy": no lane saw it
	Direction string    `json:"direction"` // out or in

	// The inner packet. Of one that died before it was unwrapped only the outer source is known.
	Src       netip.Addr `json:"src,omitzero"`
	Dst       netip.Addr `json:"dst,omitzero"`
	EtherType uint16     `json:"ethertype,omitempty"`
	Protocol  uint8      `json:"protocol"`
	SPort     uint16     `json:"sport,omitempty"`
	DPort     uint16     `json:"dport,omitempty"`
	Length    int        `json:"length"` // bytes

	From     netip.AddrPort `json:"from,omitzero"`     // in: the outer source
	Peer     string         `json:"peer,omitempty"`    // whom it goes to or comes from, as far as that was found out
	Endpoint netip.AddrPort `json:"endpoint,omitzero"` // of that peer
	VNI      uint32         `json:"vni,omitempty"`
	MTU      int            `json:"mtu,omitempty"`  // bytes, of inner packets towards the peer
	Copy     bool           `json:"copy,omitempty"` // made by the lane to flood a frame (mode tap)

	Steps []TracedStep `json:"steps"`
	Drop  string       `json:"drop,omitempty"` // why it died, in the last of the steps; "" = it was sent
	Why   string       `json:"why,omitempty"`  // of policy-denied: tier, policy and rule

	Lost uint64 `json:"lost,omitempty"` // packets so far that were chosen too, but came faster than they were read
}

// TracedStep is one step of a lane, as in `weft stages`.
type TracedStep struct {
	Name   string `json:"name"`
	Length int    `json:"length,omitempty"` // bytes of the packet behind the step; absent where it is gone
}

// PathQuestion asks for the way of a packet. Zero values: any protocol, no ports, a small packet.
type PathQuestion struct {
	Src, Dst     netip.Addr
	Protocol     uint8
	SPort, DPort uint16
	Size         int // bytes of the inner IP packet
}

// Path is one node's part of a packet's way.
type Path struct {
	Node    string     `json:"node"`
	Mode    string     `json:"mode"`
	Part    string     `json:"part"` // out: from the source to the underlay; in: from the underlay to the destination; local: both here
	Steps   []PathStep `json:"steps"`
	Arrives bool       `json:"arrives"` // as far as this node can tell
	Next    string     `json:"next,omitempty"`
}

// PathStep is one decision on the way.
type PathStep struct {
	Where   string `json:"where"`            // kernel route, lane out: route, underlay neighbour, …
	Found   string `json:"found"`            // what was decided, and by what
	Verdict string `json:"verdict"`          // pass, drop, or note: it cannot be told, or it is worth knowing
	Basis   string `json:"basis"`            // asked (the kernel or the running table answered) or computed
	Remedy  string `json:"remedy,omitempty"` // of a drop
}

// Tracer is a Daemon that can follow packets.
type Tracer interface {
	// Trace calls emit for every packet that the filter chooses, one call at a time, until ctx ends or emit returns an error.
	// started is called once packets are seen.
	Trace(ctx context.Context, filter string, started func(), emit func(Traced) error) error
	// Path says what this node would do with a packet.
	Path(q PathQuestion) (Path, error)
	// Probe sends a packet like this from this node's kernel, as if from its source, and says what was sent.
	Probe(q PathQuestion) (string, error)
}

// ErrNoLanes says that the kernel forwards in this mode: there is nothing to see packets in.
var ErrNoLanes = errors.New("no lanes")

// noLanes is a daemon's answer that is ErrNoLanes and says so in its own words.
type noLanes struct{ error }

func (noLanes) Is(target error) bool { return target == ErrNoLanes }

// handleTrace serves
//
//	GET  /v1/trace?filter=F      a stream of Traced, one JSON object a line, from a first empty line on until the client goes
//	GET  /v1/path?src=…&dst=…    Path
//	POST /v1/probe?src=…&dst=…   a JSON string
func handleTrace(mux *http.ServeMux, d Tracer) {
	mux.HandleFunc("GET /v1/trace", func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Time{}) // it may take long, and there is nothing to be read but the client's end
		begun := false
		write := func(b []byte) error {
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := w.Write(append(b, '\n')); err != nil {
				return err
			}
			return control.Flush()
		}
		err := d.Trace(r.Context(), r.URL.Query().Get("filter"), func() {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			_ = write(nil)
		}, func(t Traced) error {
			line, err := json.Marshal(t)
			if err != nil {
				return err
			}
			return write(line)
		})
		if err != nil && !begun {
			code := http.StatusBadRequest
			if errors.Is(err, ErrNoLanes) {
				code = http.StatusNotImplemented
			}
			send(w, code, failure{Error: err.Error()})
		}
	})
	mux.HandleFunc("GET /v1/path", func(w http.ResponseWriter, r *http.Request) { answerPath(w, r, d.Path) })
	mux.HandleFunc("POST /v1/probe", func(w http.ResponseWriter, r *http.Request) { answerPath(w, r, d.Probe) })
}

func answerPath[T any](w http.ResponseWriter, r *http.Request, ask func(PathQuestion) (T, error)) {
	q, err := readQuestion(r.URL.Query())
	var v T
	if err == nil {
		v, err = ask(q)
	}
	if err != nil {
		send(w, http.StatusBadRequest, failure{Error: err.Error()})
		return
	}
	reply(w, v)
}

func (q PathQuestion) values() url.Values {
	return url.Values{"src": {q.Src.String()}, "dst": {q.Dst.String()}, "protocol": {strconv.Itoa(int(q.Protocol))},
		"sport": {strconv.Itoa(int(q.SPort))}, "dport": {strconv.Itoa(int(q.DPort))}, "size": {strconv.Itoa(q.Size)}}
}

// readQuestion reads what values writes.
func readQuestion(v url.Values) (q PathQuestion, err error) {
	var errs []error
	addr := func(name string) netip.Addr {
		a, err := netip.ParseAddr(v.Get(name))
		errs = append(errs, err)
		return a.Unmap()
	}
	number := func(name string, bits int) uint64 {
		n, err := strconv.ParseUint(v.Get(name), 10, bits)
		errs = append(errs, err)
		return n
	}
	q = PathQuestion{addr("src"), addr("dst"), uint8(number("protocol", 8)), uint16(number("sport", 16)), uint16(number("dport", 16)), int(number("size", 16))}
	return q, errors.Join(errs...)
}

// Path asks what the daemon's node would do with a packet.
func (c *Client) Path(ctx context.Context, q PathQuestion) (p Path, err error) {
	return p, c.get(ctx, "path?"+q.values().Encode(), &p)
}

// Probe has the daemon's node send a packet.
func (c *Client) Probe(ctx context.Context, q PathQuestion) (sent string, err error) {
	return sent, c.post(ctx, "probe?"+q.values().Encode(), struct{}{}, &sent)
}

// Trace calls emit for every packet that the filter chooses, until ctx ends, which is no error, or emit returns an error.
// started is called once packets are seen. An error that is ErrNoLanes says why none can be.
func (c *Client) Trace(ctx context.Context, filter string, started func(), emit func(Traced) error) error {
	waiting := http.Client{Transport: c.http.Transport} // without a timeout
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weft/v1/trace?"+url.Values{"filter": {filter}}.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := waiting.Do(req)
	if err != nil {
		return silence(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		err := refusal(resp, body)
		if resp.StatusCode == http.StatusNotImplemented {
			err = noLanes{err}
		}
		return err
	}
	started()
	for dec := json.NewDecoder(resp.Body); ; {
		var t Traced
		if err := dec.Decode(&t); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: the trace ended: %w", ErrUnreachable, err)
		}
		if err := emit(t); err != nil {
			return err
		}
	}
}
