package plainfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRead: regular files alone, also behind links, and none that does not end.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	file, link, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(file, []byte("four"), 0o600), os.Symlink(file, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, link} {
		if data, err := Read(name, 4); err != nil || string(data) != "four" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if _, err := Read(name, 3); err == nil {
			t.Errorf("%s is too long, and no error", name)
		}
	}
	for _, name := range []string{pipe, dir, "/dev/zero", "/dev/null"} {
		if _, err := Read(name, Most); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Read(filepath.Join(dir, "none"), Most); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
