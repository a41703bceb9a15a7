package policies

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"weft/internal/plainfile"
	"weft/policy"
)

// every is how often a file is looked at, and the node's prefixes. A look at what has not changed costs a stat.
const every = time.Second

// file is a policy.Source: workloads and policies in a file, read again when it changes. While it cannot be used, the last good one is what
// it says.
type file struct {
	path string
	last policy.Cluster // of the last good one
	read time.Time      // when that was read
	data []byte         // as it was read last, good or not
	stat os.FileInfo    // when that was
	said string         // the Outage that was told last
}

// File is the source that is a file, an absolute path.
func File(path string) policy.Source { return &file{path: path} }

// Check reads a file and says what is wrong with it.
func Check(path string) error {
	data, err := plainfile.Read(path, plainfile.Most)
	if err != nil {
		return fmt.Errorf("policy.file: %w", err)
	}
	_, err = policy.Parse(path, data)
	return err
}

func (f *file) String() string { return f.path }

// Run implements policy.Source.
func (f *file) Run(ctx context.Context, update func(policy.Cluster)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if f.look() {
			update(f.last)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look reads the file where it may have changed, and says whether there is something to tell.
func (f *file) look() bool {
	stat, err := os.Stat(f.path)
	if err == nil && f.stat != nil && os.SameFile(stat, f.stat) && stat.ModTime().Equal(f.stat.ModTime()) && stat.Size() == f.stat.Size() &&
		time.Since(stat.ModTime()) > every { // a file that changes within the clock's grain looks the same
		return false
	}
	var data []byte
	if err == nil {
		data, err = plainfile.Read(f.path, plainfile.Most)
	}
	if err == nil && f.stat != nil && bytes.Equal(data, f.data) {
		f.stat = stat
		return false
	}
	f.data, f.stat = nil, nil
	var c policy.Cluster
	if err == nil {
		f.data, f.stat = data, stat
		c, _, err = policy.ParseCluster(f.path, data)
	}
	if err == nil {
		c.Revision = f.last.Revision + 1
		f.last, f.read, f.said = c, time.Now(), ""
		return true
	}
	text := err.Error()
	if f.last.Revision > 0 {
		text = fmt.Sprintf("%s is not in force, what was read at %s still is: %s", f.path, f.read.Format(time.RFC3339), text)
	}
	another := text != f.said
	f.said, f.last.Outage = text, text
	return another
}
