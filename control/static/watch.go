package static

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher tells of changes around a file. It watches the directory, not the file: editors and
// configuration management put a new file in its place, and Kubernetes swaps a symbolic link.
type watcher struct {
	changed chan struct{} // holds one token once a change has settled; never closed
	notify  *fsnotify.Watcher
}

// watch starts watching. On an error the watcher returned is one that never tells.
func watch(file string) (*watcher, error) {
	w := &watcher{changed: make(chan struct{}, 1)}
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return w, fmt.Errorf("inotify: %w: raise fs.inotify.max_user_instances", err)
	}
	if err := n.Add(filepath.Dir(file)); err != nil {
		n.Close()
		return w, fmt.Errorf("inotify: %w", err)
	}
	w.notify = n
	go w.run()
	return w, nil
}

// run turns bursts of events into one token each, settle after the burst's first event, until close.
func (w *watcher) run() {
	var due <-chan time.Time
	for {
		select {
		case _, open := <-w.notify.Events:
			if !open {
				return
			}
		case <-w.notify.Errors: // events were lost: look at the file
		case <-due:
			due = nil
			select {
			case w.changed <- struct{}{}:
			default: // a token is waiting already
			}
			continue
		}
		if due == nil {
			due = time.After(settle)
		}
	}
}

func (w *watcher) close() {
	if w.notify != nil {
		w.notify.Close()
	}
}
