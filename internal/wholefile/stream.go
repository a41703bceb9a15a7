package wholefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Stream is a file that is read while it is written: it takes its place, whole as far as it goes, with the first write. What was there before stays
// until then.
type Stream struct {
	Path string
	Perm fs.FileMode // before the umask, of a file that is not there yet

	to io.WriteCloser
}

// Write implements io.Writer.
func (s *Stream) Write(b []byte) (int, error) {
	if s.to != nil {
		return s.to.Write(b)
	}
	t, err := look(s.Path)
	if err != nil {
		return 0, err
	}
	if t.special {
		f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return 0, err
		}
		s.to = f
		return f.Write(b)
	}
	f, err := t.beside(unlessThere(s.Perm))
	if err != nil {
		return 0, err
	}
	n, err := f.Write(b)
	if err == nil {
		err = os.Rename(f.Name(), t.path)
	}
	if err != nil {
		return n, errors.Join(fmt.Errorf("write %s: %w", s.Path, cause(err)), f.Cleanup())
	}
	s.to = f.File
	return n, nil
}

// Close implements io.Closer. A stream that was never written to leaves its place as it was.
func (s *Stream) Close() error {
	if s.to == nil {
		return nil
	}
	return s.to.Close()
}
