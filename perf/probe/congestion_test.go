package probe

import (
	"net"
	"strings"
	"testing"
	"time"
)

func TestCongestion(t *testing.T) {
	if err := Congestion("reno"); err != nil { // every kernel has it
		t.Error(err)
	}
	if err := Congestion("nonesuch"); err == nil || !strings.Contains(err.Error(), `"nonesuch", it has `) {
		t.Errorf("a congestion control that does not exist: %v", err)
	}
}

// TestHostCongestion: whatever the host uses for its own is what connections have, and the result says which that is.
func TestHostCongestion(t *testing.T) {
	if err := Congestion(HostCongestion); err != nil {
		t.Error(err)
	}
	at := keyed(t, make([]byte, KeySize), Limit{})
	r, err := Run(t.Context(), Spec{Test: "tcp-rr", Target: at, Duration: 50 * time.Millisecond, Key: make([]byte, KeySize), Congestion: HostCongestion})
	if err != nil || r.Congestion != OwnCongestion() {
		t.Errorf("congestion control %q, want %q: %v", r.Congestion, OwnCongestion(), err)
	}
}

// TestForeignCongestion: either end refuses, before it asks the kernel, what the kernel has not got: asked for, it would load a module.
func TestForeignCongestion(t *testing.T) {
	at := keyed(t, make([]byte, KeySize), Limit{})
	for _, test := range []string{"tcp-stream", "tcp-rr", "tcp-crr"} {
		_, err := Run(t.Context(), Spec{Test: test, Target: at, Duration: 50 * time.Millisecond, Key: make([]byte, KeySize), Congestion: "nonesuch"})
		if err == nil || !strings.Contains(err.Error(), `: this host has no TCP congestion control "nonesuch": choose one`) {
			t.Errorf("%s: %v", test, err)
		}
	}
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_ = newControl(near).write(message{Type: msgHello, Version: Version, Job: &job{Role: roleTCPEcho, Flows: 1, DurationMS: 50, Congestion: "nonesuch"}})
	}()
	defer far.Close()
	if err := (&session{control: newControl(far)}).hello(); err == nil || !strings.Contains(err.Error(), "load the module tcp_nonesuch there") {
		t.Errorf("the server: %v", err)
	}
}
