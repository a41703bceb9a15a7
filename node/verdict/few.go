package verdict

import (
	"net"
	"sync"
)

// most is how many connections are served at once: strangers wait.
const most = 256

// Few is a listener on a unix socket that has so many connections at once and no more: the others wait.
func Few(l net.Listener) net.Listener { return &few{Listener: l, free: make(chan struct{}, most)} }

// few is a listener that has so many connections and no more.
type few struct {
	net.Listener
	free chan struct{}
}

func (f *few) Accept() (net.Conn, error) {
	f.free <- struct{}{}
	c, err := f.Listener.Accept()
	if err != nil {
		<-f.free
		return nil, err
	}
	return &counted{c.(*net.UnixConn), sync.OnceFunc(func() { <-f.free })}, nil
}

type counted struct {
	*net.UnixConn // of which Caller asks the kernel
	done          func()
}

func (c *counted) Close() error {
	defer c.done()
	return c.UnixConn.Close()
}
