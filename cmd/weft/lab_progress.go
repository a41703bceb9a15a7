package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	perfrun "weft/perf/run"
)

// progress shows a run on a terminal as one line that is written over, and nothing elsewhere.
type progress struct {
	w     io.Writer
	on    bool
	began time.Time // of the first sample
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, on: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) event(e perfrun.Event) {
	if !p.on {
		return
	}
	left := ""
	if e.Done > 0 {
		if p.began.IsZero() {
			p.began = time.Now()
		}
		per := time.Since(p.began) / time.Duration(e.Done)
		left = fmt.Sprintf(", about %s left", (per * time.Duration(e.Total-e.Done)).Round(time.Second))
	}
	// Return to the line's begin and erase it (ECMA-48 EL).
	fmt.Fprintf(p.w, "\r\x1b[K[%d/%d] %s%s", e.Done, e.Total, e.Text, left)
}

// end takes the line away.
func (p *progress) end() {
	if p.on {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
