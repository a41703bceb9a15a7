package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// Strangers are told of for strangerTime after they were last heard. Anybody can make packets from any address, so few are kept.
const (
	mostStrangers = 8
	strangerTime  = time.Minute
)

// stranger is one who was heard and is not of this cluster.
type stranger struct {
	Addr  string
	Why   string
	Times int
	Last  time.Time
}

// strangers are the newest of them.
type strangers struct {
	list  []stranger
	total [2]uint64 // refused: by password, by clock
}

// refused implements listener of the transport.
func (s *session) refused(from string, why error) {
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	text, kind := "it has another password, or is of another cluster", 0
	if clock := (clockError{}); errors.As(why, &clock) {
		text, kind = clock.Error(), 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.strangers
	st.total[kind]++
	i := slices.IndexFunc(st.list, func(o stranger) bool { return o.Addr == from })
	if i < 0 {
		if len(st.list) >= mostStrangers {
			st.list = slices.Delete(st.list, 0, 1)
		}
		i, st.list = len(st.list), append(st.list, stranger{Addr: from})
	}
	known := &st.list[i]
	known.Why, known.Last = text, time.Now()
	if known.Times++; known.Times == 1 {
		s.news = true
		s.wake()
	}
}

// now returns who was heard lately.
func (s *strangers) now(now time.Time) []stranger {
	s.list = slices.DeleteFunc(s.list, func(o stranger) bool { return now.Sub(o.Last) > strangerTime })
	list := slices.Clone(s.list)
	slices.SortFunc(list, func(a, b stranger) int { return cmp.Compare(a.Addr, b.Addr) })
	return list
}

func (s *stranger) text() string {
	return fmt.Sprintf("%s speaks to the mesh and is not taken: %s; give it the password and the time of this cluster, or keep it from this port", s.Addr, s.Why)
}
