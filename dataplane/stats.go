package dataplane

import (
	"time"

	"weft/packet"
)

// epoch anchors a monotonic clock: time.Since of a fixed time reads the clock once, where
// time.Now reads two.
var epoch = time.Now()

// now is monotonic time since the process began; never 0 after start-up.
func now() time.Duration { return time.Since(epoch) + 1 }

// LaneStats is a consistent snapshot of one lane since it began:
// Received + Copied = Sent + Σ drops over Stages, always.
type LaneStats struct {
	Name      string
	Direction Direction
	Turns     uint64        // batches carried
	Received  uint64        // packets that Recv presented, dead ones included
	Copied    uint64        // packets the lane made itself, to flood others
	Sent      uint64        // packets that Send took
	Waited    time.Duration // time blocked in Recv
	Age       time.Duration // time since the lane began
	Stages    []StageStats  // "recv …", the stages in their order, "send …"
}

// StageStats is one row of a lane's report. Nanos covers the Timed packets only: clocks are read
// for every large batch and a sample of the small ones.
type StageStats struct {
	Name    string
	Calls   uint64
	Packets uint64 // packets it was given
	Timed   uint64 // of those, in timed batches
	Nanos   uint64 // time spent on the timed ones
	Drops   packet.Drops
}

// PeerStats is the traffic with one peer through one lane, in inner packets and bytes.
type PeerStats struct{ Packets, Bytes uint64 }

func (s *StageStats) charge(n int, d time.Duration) {
	s.Timed += uint64(n)
	s.Nanos += uint64(max(d, 0))
}

// lap charges the time since t and returns the present.
func (s *StageStats) lap(n int, t time.Duration) time.Duration {
	d := now()
	s.charge(n, d-t)
	return d
}

// Drops sums the lane's drops over its stages.
func (s *LaneStats) Drops() (d packet.Drops) {
	for i := range s.Stages {
		d.Add(&s.Stages[i].Drops)
	}
	return d
}

// Stats returns a snapshot. It waits for at most one turn.
func (l *Lane) Stats() LaneStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Name, s.Direction, s.Age = l.cfg.Name, l.cfg.Direction, time.Since(l.began)
	s.Waited += now() - l.since // whoever holds the lock finds the lane in Recv, which tells of its wait only when it ends
	s.Stages = append([]StageStats(nil), l.stats.Stages...)
	return s
}

// Peers returns the traffic by Hop.Peer.ID; peers beyond its end have had none.
func (l *Lane) Peers() []PeerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]PeerStats(nil), l.peers...)
}
