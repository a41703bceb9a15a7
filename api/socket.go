package api

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

const (
	// longest is what sun_path of unix(7) holds, without its final zero byte.
	longest = 107
	// MaxSocketName bounds the last element of a socket's path; the folders before it may be as long as they like.
	MaxSocketName = longest - len("/proc/self/fd/1048576/")
)

// address is a name of a socket that fits into sun_path: its own or, where that is too long, one through a descriptor of its folder
// (proc(5)). The folder, nil in the first case, is to stay open as long as the name is used.
func address(path string) (name string, folder *os.File, err error) {
	if len(path) <= longest {
		return path, nil, nil
	}
	if folder, err = os.Open(filepath.Dir(path)); err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(path)), folder, nil
}

// dial connects to the socket of a path of any length.
func dial(ctx context.Context, path string) (net.Conn, error) {
	name, folder, err := address(path)
	if err != nil {
		return nil, err
	}
	defer folder.Close() // of nil it does nothing
	var d net.Dialer
	return d.DialContext(ctx, "unix", name)
}

// listen binds the socket of a path of any length.
func listen(c net.ListenConfig, path string) (net.Listener, error) {
	name, folder, err := address(path)
	if err != nil {
		return nil, err
	}
	l, err := c.Listen(context.Background(), "unix", name)
	if err != nil {
		folder.Close()
		return nil, err
	}
	return &listener{l, folder}, nil
}

// listener removes its socket when it is closed, by the name it was bound to.
type listener struct {
	net.Listener
	folder *os.File
}

// Close implements net.Listener.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.folder.Close()
	return err
}
