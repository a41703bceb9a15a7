// Package verdict answers processes of pods whether network policies allow a connection: on a unix socket of its own, which anybody may open.
// It tells nothing but verdicts, and those of the caller's own pod only: who that is, the kernel says (Caller), not the request.
//
//	GET /v1/verdict?src=10.244.1.5&dst=10.244.2.7&port=tcp/80
//	{"allowed":true}
//
// src or dst may be left out: it is the caller's own then. Addresses are those that policies judge, behind all address translation.
package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/policy"
)

// Pod is a pod of this node.
type Pod struct {
	Namespace, Name string
	Addresses       []netip.Addr
}

// Options say who is answered, and by what.
type Options struct {
	// PodOf finds the pod whose network namespace has this inode.
	PodOf func(inode uint64) (Pod, bool)
	// Allowed judges a connection by the policies in force.
	Allowed func(policy.Traffic) (bool, error)
	Log     *zap.Logger
}

// Errors that callers are told of.
var (
	ErrNoPod   = errors.New("only pods of this node are answered")
	ErrForeign = errors.New("neither end is an address of the caller's pod")
)

// Listen binds a unix socket that everybody may open, and makes its directory. Callers make sure that nobody listens there.
func Listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	err := os.MkdirAll(filepath.Dir(dir), 0o755)
	if err == nil {
		if err = os.Mkdir(dir, 0o755); err == nil {
			err = os.Chmod(dir, 0o755) // whatever the umask; one that was there is somebody's
		} else if errors.Is(err, os.ErrExist) {
			err = nil
		}
	}
	if err == nil {
		err = ours(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("verdict: socket directory: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("verdict: %w", err)
	}
	if err := openToAll(path); err != nil {
		return nil, errors.Join(fmt.Errorf("verdict: %w", err), l.Close())
	}
	return l, nil
}

// ours refuses a directory in which others may put a socket of their own in the place of this one.
func ours(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if st.Mode&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("others may write in %s, and answer in this daemon's place: chown root and chmod go-w it, or name a socket in a directory that is not there yet", dir)
	}
	return nil
}

// openToAll lets everybody connect to a socket. Whoever may write in its directory (a pod with a writable mount) may have put a symbolic
// link in its place: that is not followed, and nothing but a socket gets the mode.
func openToAll(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("%s is no socket any more: let nobody but root write in its directory, and mount it read-only", path)
	}
	return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o666)
}

// Judge answers a caller about a connection.
func (o *Options) Judge(caller Pod, t policy.Traffic) (allowed bool, err error) {
	if !slices.Contains(caller.Addresses, t.Src) && !slices.Contains(caller.Addresses, t.Dst) {
		return false, ErrForeign
	}
	return o.Allowed(t)
}

// Identify finds the pod at the other end of a connection.
func (o *Options) Identify(c net.Conn) (Pod, error) {
	inode, err := Caller(c)
	if err != nil {
		return Pod{}, fmt.Errorf("%w: %w", ErrNoPod, err)
	}
	p, ok := o.PodOf(inode)
	if !ok {
		return Pod{}, ErrNoPod
	}
	return p, nil
}

type callerKey struct{}

// Serve answers on l until ctx ends, then closes l.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	s := &http.Server{
		Handler: handler(&o), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 4 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, c.(*Known))
		},
		ErrorLog: zap.NewStdLog(zap.NewNop()), // strangers' mistakes are no news
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(Callers(l, &o)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("verdict: %w", err)
	}
	return nil
}

func handler(o *Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/verdict", func(w http.ResponseWriter, r *http.Request) {
		caller := r.Context().Value(callerKey{}).(*Known)
		if caller.Err != nil {
			send(w, http.StatusForbidden, failure{caller.Err.Error()})
			return
		}
		t, err := question(caller.Pod, r.URL.Query().Get)
		if err != nil {
			send(w, http.StatusBadRequest, failure{err.Error()})
			return
		}
		switch allowed, err := o.Judge(caller.Pod, t); {
		case errors.Is(err, ErrForeign):
			send(w, http.StatusForbidden, failure{err.Error()})
		case err != nil:
			send(w, http.StatusServiceUnavailable, failure{err.Error()})
		default:
			send(w, http.StatusOK, Answer{allowed})
		}
	})
	return mux
}

// Answer is a verdict.
type Answer struct {
	Allowed bool `json:"allowed"`
}

type failure struct {
	Error string `json:"error"`
}

func send(w http.ResponseWriter, code int, v any) {
	body, _ := json.Marshal(v) // of texts and a bool
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(body) // a caller that has gone does not matter
}

// question reads a connection.
func question(caller Pod, get func(string) string) (t policy.Traffic, err error) {
	if t.Protocol, t.Port, err = policy.ParsePort(get("port")); err != nil {
		return t, err
	}
	ends := [2]netip.Addr{}
	for i, name := range []string{"src", "dst"} {
		text := get(name)
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return t, fmt.Errorf("%s: %q is not an address", name, text)
		}
		ends[i] = a.Unmap()
	}
	for i, a := range ends {
		if a.IsValid() {
			continue
		}
		other := ends[1-i]
		k := slices.IndexFunc(caller.Addresses, func(own netip.Addr) bool { return other.IsValid() && own.Is4() == other.Is4() })
		if k < 0 {
			return t, errors.New("src and dst: give one of them at least, of a family that the pod has")
		}
		ends[i] = caller.Addresses[k]
	}
	if ends[0].Is4() != ends[1].Is4() {
		return t, errors.New("src and dst are of two families")
	}
	t.Src, t.Dst = ends[0], ends[1]
	return t, nil
}
