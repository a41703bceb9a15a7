package kubernetes_test

import (
	"reflect"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"

	"weft/control"
	"weft/control/controltest"
	"weft/control/kubernetes"
)

// cluster writes Node objects as Kubernetes and the other nodes' daemons would.
type cluster struct {
	*fake
	schema  string
	running string // the node whose daemon is the source under test
	written map[string]*corev1.Node
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, streaming := range []bool{true, false} {
		t.Run(map[bool]string{true: "streaming", false: "listing"}[streaming], func(t *testing.T) {
			t.Parallel()
			controltest.Run(t, controltest.Registered, func(t *testing.T) controltest.Cluster {
				c := &cluster{fake: startFake(t), schema: kubernetes.SchemaWeft, written: map[string]*corev1.Node{}}
				c.streaming = streaming
				c.settings.Log = zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))
				return c
			})
		})
	}
}

func (c *cluster) Source() control.Source { c.running = "a"; return kubernetes.New(c.settings) }
func (c *cluster) Break()                 { c.kill() }

func (c *cluster) Commit(nodes []control.Node) {
	present := map[string]bool{}
	for _, n := range nodes {
		present[n.Name] = true
		o := registered(n, c.schema)
		if n.Name == "a" { // what its daemon writes is its own business
			o = object(n)
		}
		if !reflect.DeepEqual(c.written[n.Name], o) {
			c.written[n.Name] = o
			c.put(n.Name, o.DeepCopy())
		}
	}
	for name := range c.written {
		if !present[name] {
			delete(c.written, name)
			c.put(name, nil)
		}
	}
	if c.server == nil {
		c.start()
	}
}
