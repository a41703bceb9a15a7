package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// CaptureRequest says which frames are wanted; in the request's URL by the names in parentheses.
type CaptureRequest struct {
	Filter  string        // (filter) which frames; "" = all
	Inside  bool          // (inside) as the pods' side has them
	Outside bool          // (outside) as the underlay has them
	Drops   bool          // (drops) those that died; none of the three = all
	SnapLen int           // (snaplen) bytes of a frame; 0 = as many as a whole packet has
	Count   uint64        // (count) ends after so many frames; 0 = never
	For     time.Duration // (for) ends after this long; 0 = never
}

// CaptureSummary is what became of a capture.
type CaptureSummary struct {
	Frames uint64 `json:"frames"` // in the file
	Lost   uint64 `json:"lost"`   // wanted, but the file could not follow
}

// CodeUnsupported is the code of an error: not in this mode.
const CodeUnsupported = "unsupported"

const (
	// captureHeader names a capture that has begun; trailers have the Summary when it has ended.
	captureHeader = "Weft-Capture"
	framesTrailer = "Weft-Capture-Frames"
	lostTrailer   = "Weft-Capture-Lost"

	// captureStall is how long a client may take to read what it was sent.
	captureStall = 30 * time.Second
	// captureEnd is how long a client waits for a file's end.
	captureEnd = 5 * time.Second
)

// captures are those under way, by number.
type captures struct {
	mu      sync.Mutex
	last    uint64
	cancels map[uint64]context.CancelFunc
}

// start answers GET /v1/capture: a pcapng file for as long as it is wanted.
func (c *captures) start(d Daemon) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request, err := parseCapture(r.URL.Query())
		if err != nil {
			send(w, http.StatusBadRequest, failure{Error: err.Error(), Code: CodeInvalid})
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		if request.For > 0 {
			ctx, cancel = context.WithTimeout(ctx, request.For)
			defer cancel()
		}
		c.mu.Lock()
		c.last++
		id := c.last
		c.cancels[id] = cancel
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			delete(c.cancels, id)
			c.mu.Unlock()
		}()
		// Neither of the server's limits is meant for an answer that takes hours.
		rc := http.NewResponseController(w)
		_ = rc.SetReadDeadline(time.Time{})
		w.Header().Set("Content-Type", "application/x-pcapng")
		w.Header().Set(captureHeader, strconv.FormatUint(id, 10))
		w.Header().Set("Trailer", framesTrailer+", "+lostTrailer)
		out := &captureWriter{w: w, rc: rc}
		summary, err := d.Capture(ctx, request, out, rc.Flush)
		if err != nil && !out.began {
			for _, h := range []string{captureHeader, "Trailer"} {
				w.Header().Del(h)
			}
			f, code := failure{Error: err.Error()}, http.StatusInternalServerError
			if e := (*Error)(nil); errors.As(err, &e) {
				f, code = failure{Error: e.Text, Code: e.Code}, http.StatusUnprocessableEntity
			}
			send(w, code, f)
			return
		}
		w.Header().Set(framesTrailer, strconv.FormatUint(summary.Frames, 10))
		w.Header().Set(lostTrailer, strconv.FormatUint(summary.Lost, 10))
	}
}

// stop answers DELETE /v1/capture/{id}: the file is brought to its end.
func (c *captures) stop(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	c.mu.Lock()
	cancel := c.cancels[id]
	c.mu.Unlock()
	if err != nil || cancel == nil {
		send(w, http.StatusNotFound, failure{Error: fmt.Sprintf("no capture %q", r.PathValue("id")), Code: CodeNotFound})
		return
	}
	cancel()
	reply(w, struct{}{})
}

// captureWriter gives each write its own time, and knows whether there was one.
type captureWriter struct {
	w     io.Writer
	rc    *http.ResponseController
	began bool
}

func (c *captureWriter) Write(b []byte) (int, error) {
	c.began = true
	_ = c.rc.SetWriteDeadline(time.Now().Add(captureStall))
	return c.w.Write(b)
}

func parseCapture(q url.Values) (r CaptureRequest, err error) {
	for name := range q {
		text := q.Get(name)
		switch name {
		case "filter":
			r.Filter = text
		case "inside":
			r.Inside, err = strconv.ParseBool(text)
		case "outside":
			r.Outside, err = strconv.ParseBool(text)
		case "drops":
			r.Drops, err = strconv.ParseBool(text)
		case "snaplen":
			r.SnapLen, err = strconv.Atoi(text)
		case "count":
			r.Count, err = strconv.ParseUint(text, 10, 64)
		case "for":
			r.For, err = time.ParseDuration(text)
		default:
			err = errors.New("unknown to this version: do the daemon and this command have the same one?")
		}
		if err != nil {
			return r, fmt.Errorf("%s=%s: %w", name, text, err)
		}
	}
	return r, nil
}

func (r CaptureRequest) query() url.Values {
	return url.Values{"filter": {r.Filter}, "inside": {strconv.FormatBool(r.Inside)}, "outside": {strconv.FormatBool(r.Outside)},
		"drops": {strconv.FormatBool(r.Drops)}, "snaplen": {strconv.Itoa(r.SnapLen)}, "count": {strconv.FormatUint(r.Count, 10)}, "for": {r.For.String()}}
}

// Capture asks for a pcapng file of what passes the lanes, until the request's limits or the end of ctx; then the daemon brings the file
// to its end, so that it is whole. The summary is that of the daemon. began is called when the daemon has begun to watch.
func (c *Client) Capture(ctx context.Context, r CaptureRequest, w io.Writer, began func()) (s CaptureSummary, err error) {
	// A context of its own: the end of ctx is for the daemon to answer, and only a daemon that does not is left.
	life, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	req, err := http.NewRequestWithContext(life, http.MethodGet, "http://weft/v1/capture?"+r.query().Encode(), nil)
	if err != nil {
		return s, err
	}
	long := http.Client{Transport: c.http.Transport} // without a time limit
	dial := context.AfterFunc(ctx, leave)            // until there is an answer, the end of ctx is the end
	resp, err := long.Do(req)
	if !dial() && ctx.Err() != nil {
		if err == nil {
			resp.Body.Close()
		}
		return s, ctx.Err()
	}
	if err != nil {
		return s, silence(life, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return s, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		return s, refusal(resp, body)
	}
	stop := context.AfterFunc(ctx, func() {
		late, cancel := context.WithTimeout(life, captureEnd)
		defer cancel()
		if c.ask(late, http.MethodDelete, "capture/"+resp.Header.Get(captureHeader), nil, &struct{}{}) != nil {
			leave()
			return
		}
		time.AfterFunc(captureEnd, leave)
	})
	defer stop()
	began()
	blocks := &blockWriter{w: w}
	_, err = io.Copy(blocks, resp.Body)
	if err != nil {
		return s, fmt.Errorf("capture: the daemon or the file ended early: %w", err)
	}
	s.Frames, err = strconv.ParseUint(resp.Trailer.Get(framesTrailer), 10, 64)
	if err == nil {
		s.Lost, err = strconv.ParseUint(resp.Trailer.Get(lostTrailer), 10, 64)
	}
	if err != nil {
		return s, fmt.Errorf("capture: the daemon ended in the middle: %w", err)
	}
	return s, nil
}

// blockWriter passes on whole blocks of a pcapng file only, so that the file is good wherever the stream breaks off. A block's second
// word is its length, in the byte order of the writer, which is this machine's daemon and little-endian
// (draft-ietf-opsawg-pcapng §3.1):
//
//	0 | type, 4 | length of the whole block, 4 | … | the same length, 4 |
type blockWriter struct {
	w    io.Writer
	held []byte
}

const (
	blockHeader = 8
	maxBlock    = 1 << 20 // bytes; a frame is 64 KB at most
)

func (b *blockWriter) Write(data []byte) (int, error) {
	b.held = append(b.held, data...)
	whole := 0
	for len(b.held)-whole >= blockHeader {
		h := b.held[whole:]
		n := int(h[4]) | int(h[5])<<8 | int(h[6])<<16 | int(h[7])<<24
		if n < blockHeader+4 || n > maxBlock || n%4 != 0 {
			return 0, fmt.Errorf("a block of %d bytes: this is no pcapng file", n)
		}
		if len(h) < n {
			break
		}
		whole += n
	}
	if whole == 0 {
		return len(data), nil
	}
	_, err := b.w.Write(b.held[:whole])
	b.held = append(b.held[:0], b.held[whole:]...)
	return len(data), err
}
