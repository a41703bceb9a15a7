package backend

import (
	"fmt"
	"strings"
	"time"
)

// Fault is a stage slowed on purpose, to see whether a measurement finds it.
type Fault struct {
	Stage     string        // as lanes name it: route, vxlan, ipudp, sealed, …
	PerPacket time.Duration // that it takes longer
}

// ParseFault reads STAGE:DURATION, vxlan:100ns say.
func ParseFault(text string) (*Fault, error) {
	stage, length, ok := strings.Cut(text, ":")
	d, err := time.ParseDuration(length)
	if !ok || stage == "" || err != nil || d <= 0 || d > time.Millisecond {
		return nil, fmt.Errorf("fault %q: write a stage and the time it takes longer for each packet, up to 1ms, vxlan:100ns say", text)
	}
	return &Fault{stage, d}, nil
}
