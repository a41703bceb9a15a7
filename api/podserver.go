package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Pods is what the server asks about pods. Errors that are an *Error keep their code, others get
// CodeFailed.
type Pods interface {
	Announce(context.Context, AnnounceRequest) error
	Attach(context.Context, AttachRequest) (AttachResult, error)
	Detach(context.Context, DetachRequest) error
	Check(context.Context, CheckRequest) error
	GC(context.Context, GCRequest) error
	Pods() ([]Pod, error)
	PodStatus() PodStatus
}

// maxRequest bounds what a client may send: a GC of 10,000 pods is under 2 MB.
const maxRequest = 16 << 20

// handlePods answers what concerns pods.
func handlePods(mux *http.ServeMux, p Pods) {
	mux.HandleFunc("POST /v1/pods/announce", answer(done(p.Announce)))
	mux.HandleFunc("POST /v1/pods/attach", answer(p.Attach))
	mux.HandleFunc("POST /v1/pods/detach", answer(done(p.Detach)))
	mux.HandleFunc("POST /v1/pods/check", answer(done(p.Check)))
	mux.HandleFunc("POST /v1/pods/gc", answer(done(func(ctx context.Context, q GCRequest) error {
		if q.Valid == nil {
			return &Error{Code: CodeInvalid, Text: "valid is missing: name the attachments that are, or [] where none is, and all others go"}
		}
		return p.GC(ctx, q)
	})))
	mux.HandleFunc("GET /v1/pods", func(w http.ResponseWriter, _ *http.Request) {
		pods, err := p.Pods()
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, list(pods))
	})
	mux.HandleFunc("GET /v1/pods/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, p.PodStatus()) })
}

// done makes a request without an answer one with an empty answer.
func done[Q any](do func(context.Context, Q) error) func(context.Context, Q) (struct{}, error) {
	return func(ctx context.Context, q Q) (struct{}, error) { return struct{}{}, do(ctx, q) }
}

func answer[Q, A any](do func(context.Context, Q) (A, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q Q
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		dec.DisallowUnknownFields() // half of what is asked for is not what is asked for
		if err := dec.Decode(&q); err != nil {
			refuse(w, &Error{Code: CodeInvalid, Text: fmt.Sprintf("the request cannot be read: %v", err)})
			return
		}
		a, err := do(r.Context(), q)
		if err != nil {
			refuse(w, err)
			return
		}
		reply(w, a)
	}
}

// statusCodes are the HTTP statuses that go with a code.
var statusCodes = map[string]int{
	CodeUnavailable: http.StatusServiceUnavailable, CodeExhausted: http.StatusInsufficientStorage, CodeNotInPrefix: http.StatusBadRequest,
	CodeExists: http.StatusConflict, CodeNoNetns: http.StatusNotFound, CodeNotFound: http.StatusNotFound, CodeMismatch: http.StatusConflict,
	CodeInvalid: http.StatusBadRequest, CodeFailed: http.StatusInternalServerError,
}

func refuse(w http.ResponseWriter, err error) {
	code := CodeFailed
	var coded *Error
	if errors.As(err, &coded) {
		code = coded.Code
	}
	send(w, statusCodes[code], failure{Error: err.Error(), Code: code})
}
