package sock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestSample fills a socket that nobody reads, and counts.
func TestSample(t *testing.T) {
	rx, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(rx)
	if err := unix.Bind(rx, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(rx)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tx)
	var d drops
	if n := d.sample(rx); n != 0 {
		t.Errorf("a new socket has dropped %d", n)
	}
	const sent = 2000
	for range sent {
		if err := unix.Sendto(tx, make([]byte, 1000), 0, at); err != nil {
			t.Fatal(err)
		}
	}
	held := 0
	for buf := make([]byte, 1000); ; held++ {
		if _, err := unix.Read(rx, buf); err != nil {
			break
		}
	}
	if held == sent {
		t.Fatal("the socket holds everything: nothing was tested")
	}
	if n := d.sample(rx); n != uint64(sent-held) {
		t.Errorf("%d of %d are in the socket, %d were counted as dropped", held, sent, n)
	}
	if n := d.sample(-1); n != uint64(sent-held) {
		t.Errorf("without a socket the count became %d", n)
	}
}
