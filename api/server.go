package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Daemon is what the server asks. Every method is cheap and safe from any goroutine.
type Daemon interface {
	Status() Status
	Nodes() []Node
	Peers() []Peer
	Choice(node string) (c Choice, known bool)
	Routes() []Route
	Lanes() []Lane

	// Capture writes a pcapng file to w until ctx ends or the request's count is reached, and calls flush after each group of blocks. An
	// error before the first Write is one of the request.
	Capture(ctx context.Context, r CaptureRequest, w io.Writer, flush func() error) (CaptureSummary, error)
}

// Flower is a Daemon that knows flows.
type Flower interface {
	// Flows lists the pods' flows that a cache carries past the node's own stack, or not yet, and why.
	Flows() []Flow
}

// ErrInUse says that another process answers on the socket.
var ErrInUse = errors.New("a daemon answers on it")

// Listen binds the unix socket with mode 0600 and makes its directory. A socket that nobody listens
// on any more, left by a killed daemon, is replaced; one that is alive is ErrInUse, and a file that
// is no socket is left alone. The file goes when the listener is closed. Callers make sure that two
// daemons do not start at the same moment.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("api: socket directory: %w", err)
	}
	if err := RemoveStale(path, "api.socket"); err != nil {
		return nil, err
	}
	// The mode of the socket before bind(2) becomes the mode of the file, so that it is at no
	// moment open to others.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	l, err := listen(private, path)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	return l, nil
}

// peer is the process at the other end of a unix socket, 0 where the kernel does not say.
func peer(c net.Conn) (pid int) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if of, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			pid = int(of.Pid)
		}
	})
	return pid
}

// RemoveStale removes a socket that nobody listens on. A live one is ErrInUse, and a file that is no
// socket is an error too; where there is nothing there is nothing to do.
//
// Errors name the configuration's key that the path comes from.
func RemoveStale(path, key string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("api: socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("api: %s exists and is no socket: move it away or set %s", path, key)
	}
	c, err := dial(context.Background(), path)
	switch {
	case err == nil:
		by := ""
		if pid := peer(c); pid > 0 {
			by = fmt.Sprintf(" (pid %d)", pid)
		}
		c.Close()
		return fmt.Errorf("api: socket %s: %w%s: stop that daemon or set %s", path, ErrInUse, by, key)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("api: socket: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("api: stale socket: %w", err)
	}
	return nil
}

// Serve answers what is asked of d and p on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, d Daemon, p Pods) error {
	return ServeHTTP(ctx, l, Handler(d, p))
}

// ServeHTTP answers on l until ctx ends, then closes l and lets requests under way finish.
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(patience) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("api: %w", err)
}

// Handler answers the requests listed in the package comment.
func Handler(d Daemon, p Pods) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, d.Status()) })
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(d.Nodes())) })
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(d.Peers())) })
	mux.HandleFunc("GET /v1/peers/{node}", func(w http.ResponseWriter, r *http.Request) {
		c, known := d.Choice(r.PathValue("node"))
		if !known {
			send(w, http.StatusNotFound, failure{Error: fmt.Sprintf("no other node %q is known here: see `weft nodes`", r.PathValue("node")), Code: CodeNotFound})
			return
		}
		reply(w, c)
	})
	mux.HandleFunc("GET /v1/routes", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(d.Routes())) })
	mux.HandleFunc("GET /v1/stages", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(d.Lanes())) })
	handlePods(mux, p)
	if f, ok := d.(Flower); ok {
		mux.HandleFunc("GET /v1/flows", func(w http.ResponseWriter, _ *http.Request) { reply(w, list(f.Flows())) })
	}
	if t, ok := d.(Tracer); ok {
		handleTrace(mux, t)
	}
	if p, ok := d.(Policer); ok {
		handlePolicies(mux, p)
	}
	if b, ok := d.(Speaker); ok {
		handleBGP(mux, b)
	}
	if m, ok := d.(Mesher); ok {
		handleMesh(mux, m)
	}
	c := &captures{cancels: map[uint64]context.CancelFunc{}}
	mux.HandleFunc("GET /v1/capture", c.start(d))
	mux.HandleFunc("DELETE /v1/capture/{id}", c.stop)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		send(w, http.StatusNotFound, failure{Error: fmt.Sprintf("no %s %s in this version", r.Method, r.URL.Path)})
	})
	return mux
}

// failure is the body of every answer that is not a success.
type failure struct {
	Error string `json:"error"`
	Code  string `json:"code,omitempty"`
}

func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

func reply(w http.ResponseWriter, v any) { send(w, http.StatusOK, v) }

func send(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(body) // a client that has gone does not matter
}
