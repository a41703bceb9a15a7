package wait

import "time"

const (
	// sparseAfter is how many Recvs in a row have to sleep for one packet each until the next ones
	// expect that.
	sparseAfter = 4

	// briefly is more than a poll takes that finds something at once, and less than any sleep.
	briefly = 3 * time.Microsecond
)

// pace tells packets that come one at a time, with sleep between them, from the rest. For them, asking
// whether there is another one is a system call for nothing, and asking before the sleep is a second one:
// together a tenth of a round trip through two nodes. Where it expects wrongly, the next poll returns at
// once, which ends it.
type pace struct {
	slept bool // since the last Recv
	lone  int  // Recvs in a row that slept and found one packet each
}

func (p *pace) sparse() bool { return p.lone >= sparseAfter }

// blocked learns from a poll of this length.
func (p *pace) blocked(d time.Duration) {
	if p.slept = d >= briefly; !p.slept {
		p.lone = 0
	}
}

// found learns from a Recv that ends with n packets.
func (p *pace) found(n int) {
	if p.slept && n == 1 {
		p.lone++
	} else {
		p.lone = 0
	}
	p.slept = false
}
