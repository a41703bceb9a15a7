// Package static is the control plane that is a file: nodes.yaml lists every node, each machine has
// a copy, and a change takes effect when the file changes.
//
//	nodes:
//	  - {name: a, endpoints: [192.0.2.1, "2001:db8::1"], prefixes: [10.244.1.0/24], public_key: ""}
//
// Where two lines claim the same, control.Check keeps what was in force before the file was changed: a slip of the pen harms the line
// it is in. A daemon that starts has seen no before, and a file tells no ages: then the usual length of prefixes decides, and names.
//
// A file that cannot be used never takes the cluster down: at start it is an error, later the last
// good one stays in force and the State says so. Without a file the node is alone and owns the
// whole network, which is what a first try and a one-machine cluster want.
package static

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/plainfile"
)

const (
	// settle is how long a change may go on before the file is read: editors and configuration
	// management write in several steps.
	settle = 100 * time.Millisecond
	// recheck is how often the file is read without being told to: for file systems that do not
	// notify (NFS, symbolic links into other directories).
	recheck = 10 * time.Second
	// poll replaces recheck where notification cannot be had at all.
	poll = time.Second
)

// Source reads one file. It implements control.Source.
type Source struct {
	file    string
	network []netip.Prefix
	log     *zap.Logger

	control.Announcement
}

// New makes a source of the file (absolute path) for an overlay of these prefixes. The file is first
// read by Run.
func New(file string, network []netip.Prefix, log *zap.Logger) *Source {
	return &Source{file: file, network: network, log: log}
}

// Run publishes the file's State and publishes again whenever the file changes. Of what this node announces it uses the
// name, and the rest where there is no file: a file is a person's word, this node included.
func (s *Source) Run(ctx context.Context, update func(control.State)) error {
	self, announced := s.Announced()
	changes, err := watch(s.file)
	every := recheck
	if err != nil {
		s.log.Warn("the nodes file is polled: its directory cannot be watched", zap.String("file", s.file), zap.Error(err))
		every = poll
	}
	defer changes.close()

	data, err := s.read()
	if err != nil {
		return err
	}
	state, err := s.state(data, self, control.State{})
	if err != nil {
		return err
	}
	if data == nil {
		s.log.Warn("no nodes file: this node has no peers and owns the whole network",
			zap.String("file", s.file), zap.String("node", self.Name), zap.Stringers("prefixes", s.network))
	}
	var last control.State
	publish := func(st control.State) {
		st.Number(&last)
		last = st
		s.publish(st, update)
	}
	publish(state)

	ticker := time.NewTicker(every)
	defer ticker.Stop()
	now := seen{data: data, good: state}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-announced:
			self, _ = s.Announced()
			if now.data == nil {
				now.good = s.alone(self)
				publish(now.state(s.file))
			}
			continue
		case <-changes.changed:
		case <-ticker.C:
		}
		if next, changed := s.reread(now, self); changed {
			publish(next.state(s.file))
			now = next
		}
	}
}

// seen is what the last look at the file gave.
type seen struct {
	data  []byte        // nil = no file
	good  control.State // the last State that could be used
	wrong string        // why the file is not in force now, "" when it is
}

// state is the State to publish: the good one, with what is wrong added.
func (l seen) state(file string) control.State {
	if l.wrong == "" {
		return l.good
	}
	st := l.good
	text := fmt.Sprintf("%s is not in force, the nodes read at %s still are: %s", file, st.AsOf.Format(time.RFC3339), l.wrong)
	st.Problems = append([]control.Problem{{Text: text}}, st.Problems...)
	return st
}

// reread looks again and says whether there is anything new to publish.
func (s *Source) reread(last seen, self control.Node) (seen, bool) {
	data, err := s.read()
	if err == nil && bytes.Equal(data, last.data) && (data == nil) == (last.data == nil) && last.wrong == "" {
		return last, false
	}
	next := seen{data: data, good: last.good}
	if err == nil && data == nil && last.data != nil {
		err = fmt.Errorf("%s does not exist any more: write it again", s.file)
	}
	if err == nil {
		var good control.State
		if good, err = s.state(data, self, last.good); err == nil {
			next.good = good
			s.log.Info("nodes read", zap.String("file", s.file), zap.Int("nodes", len(good.Nodes)+1))
			return next, true
		}
	}
	next.wrong = err.Error()
	if next.data == nil {
		next.data = last.data // so that a file that stays away is not taken for a node alone
	}
	if next.wrong == last.wrong {
		return last, false
	}
	s.log.Error("the nodes file cannot be used: the last good one stays in force", zap.String("file", s.file), zap.Error(err))
	return next, true
}

// read returns the file's bytes, nil where there is no file.
func (s *Source) read() ([]byte, error) {
	data, err := plainfile.Read(s.file, plainfile.Most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("static: %w", err)
	}
	if data == nil {
		data = []byte{}
	}
	return data, nil
}

// Read implements control.Source: it reads the file once.
func (s *Source) Read() (control.State, error) {
	self, _ := s.Announced() // Run is not under way where this is asked
	data, err := s.read()
	if err != nil {
		return control.State{}, err
	}
	return s.state(data, self, control.State{})
}

// state makes the State of a file's bytes. before is what is in force.
func (s *Source) state(data []byte, self control.Node, before control.State) (control.State, error) {
	if data == nil {
		return s.alone(self), nil
	}
	now := time.Now()
	nodes, problems, err := parse(s.file, data)
	if err != nil {
		return control.State{}, err
	}
	st, err := control.Check(self.Name, s.network, nodes, before, nil)
	if err != nil {
		err = fmt.Errorf("%s: %w", s.file, err)
		for _, p := range problems {
			if p.Node == self.Name {
				err = fmt.Errorf("%w\n%s", err, p.Text)
			}
		}
		return control.State{}, err
	}
	st.AsOf, st.Problems = now, append(problems, st.Problems...)
	return st, nil
}

// alone is the State of a node without a file.
func (s *Source) alone(self control.Node) control.State {
	self.Prefixes = s.network
	return control.State{Self: self, AsOf: time.Now()}
}

// Hear implements control.Source: a file has no place for it.
func (s *Source) Hear(control.InForce) {}

// Store implements control.Source: the network is each node's own configuration.
func (s *Source) Store() control.NetworkStore { return nil }

// publish logs what was left out and hands the State on.
func (s *Source) publish(st control.State, update func(control.State)) {
	for _, p := range st.Problems {
		s.log.Warn("the cluster's data has a problem", zap.String("node", p.Node), zap.String("problem", p.Text))
	}
	update(st)
}
