package main

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// TestCrash: a daemon that crashes does not end with the exit code of a wrong configuration.
func TestCrash(t *testing.T) {
	crashes := map[string]func(){
		"panic":   func() { panic("a bug") },
		"nil":     func() { var p *int; *p = 1 },
		"abort":   func() { _ = syscall.Kill(os.Getpid(), syscall.SIGABRT); select {} },
		"runtime": func() { new(sync.Mutex).Unlock() },
	}
	if crash := crashes[os.Getenv("WEFT_TEST_CRASH")]; crash != nil {
		crashBySignal()
		go crash() // where the test's own goroutine does not see it
		select {}
	}
	for name := range crashes {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrash$")
		cmd.Env = append(os.Environ(), "WEFT_TEST_CRASH="+name)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if w := exit.Sys().(syscall.WaitStatus); !w.Signaled() || w.Signal() != syscall.SIGABRT || w.CoreDump() || len(out) == 0 {
			t.Errorf("%s: %v, core %v\n%s", name, exit, w.CoreDump(), out)
		}
	}
}
