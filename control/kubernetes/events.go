package kubernetes

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weft/control"
	"weft/internal/backoff"
)

const (
	// eventReason is that of the Events about this node's Node object.
	eventReason = "WeftProblem"
	// eventNamespace is where Events about objects without a namespace live.
	eventNamespace = "default"
	// eventPause is the least time between two Events, eventsWaiting how many may wait; more are left out: they are in the log
	// and in `weft status`.
	eventPause    = time.Second
	eventsWaiting = 10
)

// tellEvent has an Event made of a new problem of this node; what the others have wrong is theirs to say.
func (m *member) tellEvent(p control.Problem) {
	if p.Node != m.self.Name {
		return
	}
	select {
	case m.events <- p.Text:
	default:
	}
}

// writeEvents writes them until ctx ends. An Event that cannot be written is lost: it was no more than a hint.
func (m *member) writeEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-m.events:
			if err := m.client.event(ctx, m.name, text); err != nil && ctx.Err() == nil {
				m.log.Info("an Event about this node is not written", zap.Error(err))
			}
		}
		if !backoff.Sleep(ctx, eventPause) {
			return
		}
	}
}

// event writes an Event about a node, as `kubectl describe node` shows it.
func (c *client) event(ctx context.Context, node, text string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	now := metav1.Now()
	const longest = 1024 // bytes, the API's limit of a message
	if len(text) > longest {
		text = text[:longest-1] + "."
	}
	return c.rest.Post().Namespace(eventNamespace).Resource("events").Body(&corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", node, now.UnixNano()), Namespace: eventNamespace},
		// The kubelet's own Events name its node instead of the UID, and tools look for them by that.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: node, UID: types.UID(node), APIVersion: "v1"},
		Reason:         eventReason, Message: text, Type: corev1.EventTypeWarning, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: manager, Host: node}, ReportingController: manager, ReportingInstance: node,
	}).Do(ctx).Error()
}
