package pods

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"weft/hostnet"
)

// TestAbout: an attach fails for what is wrong with its own link, not for other pods', and knows what has its place.
func TestAbout(t *testing.T) {
	mine := &hostnet.Contradiction{Owner: "pods", Other: "pods", Dev: "weft1"}
	all := errors.Join(
		&hostnet.ObjectError{Object: "a route", Dev: "weft2", Err: unix.EINVAL},
		&hostnet.Contradiction{Owner: "pods", Other: "pods", Dev: "weft2"},
		errors.Join(mine))
	if err := about(all, "weft1"); !errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) || err.Error() != mine.Error() {
		t.Errorf("about weft1: %v", err)
	}
	if err := about(all, "weft3"); err != nil {
		t.Errorf("about weft3: %v", err)
	}
	bridge := &hostnet.ObjectError{Object: "a link", Dev: hostnet.Bridge, Err: unix.EPERM}
	if err := about(bridge, "weft3"); !errors.Is(err, unix.EPERM) {
		t.Errorf("the bridge is everybody's: %v", err)
	}
}
