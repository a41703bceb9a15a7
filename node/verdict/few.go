package verdict

import (
	"net"
	"sync"

	"go.uber.org/zap"
)

// perCaller is how many connections of one pod are served at once; those that are in no pod of this node share as many. A proxy has one or a few for
// each of its threads.
const perCaller = 128

// Known is a connection whose other end has been found out.
type Known struct {
	*net.UnixConn
	Pod Pod
	Err error // why nobody is answered there

	done func()
}

// Close ends the connection, and counts it no more.
func (c *Known) Close() error {
	defer c.done()
	return c.UnixConn.Close()
}

// Callers is a listener on a unix socket whose connections are Known. One beyond what its pod may have is closed at once: nobody waits for others.
func Callers(l net.Listener, o *Options) net.Listener {
	return &callers{Listener: l, o: o, open: map[string]int{}, told: map[string]bool{}}
}

type callers struct {
	net.Listener
	o *Options

	mu   sync.Mutex
	open map[string]int  // by NAMESPACE/NAME, "" of strangers
	told map[string]bool // who was told of since it had none open
}

func (l *callers) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		k := &Known{UnixConn: c.(*net.UnixConn)}
		k.Pod, k.Err = l.o.Identify(c)
		who := ""
		if k.Err == nil {
			who = k.Pod.Namespace + "/" + k.Pod.Name
		}
		if !l.take(who) {
			c.Close()
			continue
		}
		k.done = sync.OnceFunc(func() { l.give(who) })
		return k, nil
	}
}

func (l *callers) take(who string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[who] == perCaller {
		if !l.told[who] {
			l.told[who] = true
			l.o.Log.Warn("a pod asks for verdicts over more connections than it may: the others are closed", zap.String("pod", who), zap.Int("connections", perCaller))
		}
		return false
	}
	l.open[who]++
	return true
}

func (l *callers) give(who string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[who]--; l.open[who] == 0 {
		delete(l.open, who)
		delete(l.told, who)
	}
}
