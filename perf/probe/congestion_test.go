package probe

import (
	"strings"
	"testing"
)

func TestCongestion(t *testing.T) {
	if err := Congestion("reno"); err != nil { // every kernel has it
		t.Error(err)
	}
	if err := Congestion("nonesuch"); err == nil || !strings.Contains(err.Error(), `"nonesuch", it has `) {
		t.Errorf("a congestion control that does not exist: %v", err)
	}
}
