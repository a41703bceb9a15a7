package contender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// status is what the lab wants to know of a daemon.
type status struct {
	ready    bool
	reason   string // why it is not
	innerMTU int
}

// readStatus asks a daemon as a person would: `weft status -o json`.
func (n node) readStatus(ctx context.Context) (status, error) {
	var s struct {
		Ready    bool   `json:"ready"`
		Reason   string `json:"reason"`
		InnerMTU int    `json:"inner_mtu"`
	}
	err := n.ask(ctx, &s, "status")
	return status{s.Ready, s.Reason, s.InnerMTU}, err
}

// readLanes asks for the counters of the daemon's lanes: `weft stages -o json`.
func (n node) readLanes(ctx context.Context) ([]Lane, error) {
	var s struct {
		Lanes []struct {
			Name           string
			Received, Sent uint64
			Stages         []struct{ Drops map[string]uint64 }
		}
	}
	if err := n.ask(ctx, &s, "stages"); err != nil {
		return nil, err
	}
	var lanes []Lane
	for _, l := range s.Lanes {
		lane := Lane{Node: n.Name, Name: l.Name, Received: l.Received, Sent: l.Sent, Drops: map[string]uint64{}}
		for _, stage := range l.Stages {
			for reason, count := range stage.Drops {
				lane.Drops[reason] += count
			}
		}
		lanes = append(lanes, lane)
	}
	return lanes, nil
}

func (n node) ask(ctx context.Context, into any, command string) error {
	out, err := exec.CommandContext(ctx, n.weft, command, "--socket", n.socket, "-o", "json").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("weft %s: %s", command, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return fmt.Errorf("weft %s: %w", command, err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("weft %s: %w", command, err)
	}
	return nil
}
