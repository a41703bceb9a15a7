package etcd

import clientv3 "go.etcd.io/etcd/client/v3"

// Share makes the source use a client that others use as well and that it does not close: a thousand
// simulated nodes need not have a thousand connections.
func (s *Source) Share(c *clientv3.Client) *Source {
	s.dial = func(Settings) (*clientv3.Client, func(), error) { return c, func() {}, nil }
	return s
}

// Dial is the client that a source of these settings uses.
func Dial(s Settings) (*clientv3.Client, func(), error) { return dial(s) }
