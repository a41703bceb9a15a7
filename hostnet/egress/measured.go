package egress

import (
	"net/netip"
	"sync"
	"time"
)

// Measured is what was found out of the paths to peers by sending packets of full size. That proves what nobody on the way has to say: it narrows a
// path whose routers are silent, and where packets arrive that should be too large, it refutes whoever said so (RFC 8899 §4.6). One goroutine has a
// Finder take it in, others may find out.
type Measured struct {
	news chan struct{}

	mu    sync.Mutex
	fresh bool // the Finder has not seen the last finding
	paths map[netip.Addr]Path
	found map[netip.Addr]finding
}

// finding is what packets have shown of a path.
type finding struct {
	of      Path // without what was heard of it
	carries int  // bytes; as many as of.MTU: all
	at      time.Time
}

// NewMeasured returns one in which nothing has been found out.
func NewMeasured() *Measured {
	return &Measured{news: make(chan struct{}, 1), paths: map[netip.Addr]Path{}, found: map[netip.Addr]finding{}}
}

// News gets a token when a finding makes a path another one.
func (m *Measured) News() <-chan struct{} { return m.news }

// Path returns the path to a peer's endpoint as the Finder has it; false where it has not asked for it, or there is none.
func (m *Measured) Path(endpoint netip.Addr) (p Path, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p = m.paths[endpoint]
	return p, p.Device != ""
}

// Found takes note that the path to an endpoint, which Path returned, has carried packets of so many bytes, and no larger ones; at is when the first of
// them was sent. Of a path that is another one by now it says nothing.
func (m *Measured) Found(endpoint netip.Addr, of Path, carries int, at time.Time) {
	of.Heard, of.By = 0, ""
	carries = min(carries, of.MTU)
	m.mu.Lock()
	defer m.mu.Unlock()
	is, ok := m.paths[endpoint]
	if !ok || is.certain() != of {
		return
	}
	before := of.MTU
	if f, known := m.found[endpoint]; known && f.of == of {
		before = f.carries
	}
	m.found[endpoint] = finding{of, carries, at}
	if carries == before && (carries < of.MTU || is.Heard == 0) {
		return
	}
	m.fresh = true
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// take says whether there are findings that the Finder has not seen. Nil has none.
func (m *Measured) take() bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := m.fresh
	m.fresh = false
	return fresh
}

// of returns what holds of a path that is asked for now: how many bytes it carries, 0 = not known, and since when all of them.
func (m *Measured) of(to netip.Addr, p Path, now time.Time) (carries int, whole time.Time) {
	if m == nil {
		return 0, whole
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.found[to]
	switch {
	case !ok:
		return 0, whole
	case f.of != p || now.Sub(f.at) > believed:
		delete(m.found, to)
		return 0, whole
	case f.carries == p.MTU:
		return 0, f.at
	}
	return f.carries, whole
}

// keep takes the paths, which nobody edits any more, and forgets what no peer is reached by any more.
func (m *Measured) keep(paths map[netip.Addr]Path) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paths = paths
	for to := range m.found {
		if _, still := paths[to]; !still {
			delete(m.found, to)
		}
	}
}
