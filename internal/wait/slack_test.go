package wait

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// TestSlackTimers: every thread has the slack, those made afterwards too.
func TestSlackTimers(t *testing.T) {
	nettest.RequireRoot(t) // CAP_SYS_NICE
	if err := SlackTimers(); err != nil {
		t.Fatal(err)
	}
	locked, end := make(chan bool), make(chan bool)
	defer close(end)
	for range 8 { // each on a thread of its own
		go func() {
			runtime.LockOSThread()
			locked <- true
			<-end
		}()
		<-locked
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		got, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err != nil {
			continue // it has ended
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(got)), 10, 64); err != nil || n != TimerSlack.Nanoseconds() {
			t.Errorf("thread %s has a slack of %s ns, %v", task.Name(), got, err)
		}
	}
}
