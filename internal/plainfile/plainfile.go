// Package plainfile reads files that somebody else writes, and of whom nobody knows what he makes of them: a name that leads to a pipe or a device would keep the
// reader waiting for ever, one that leads to something endless would take all memory.
package plainfile

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Most is how long a file that people write may be, bytes: some hundred times the list of 5,000 nodes.
const Most = 64 << 20

// Open opens a file to be read. What is no regular file, behind symbolic links, is an error; it waits for nobody.
func Open(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file (%s): put one there", name, info.Mode().Type())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Read returns what a regular file of at most so many bytes holds.
func Read(name string, most int64) ([]byte, error) {
	f, err := Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s is longer than %d bytes, which nobody has written by intention", name, most)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}
