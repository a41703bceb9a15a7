// Package wholefile writes files whole or not at all: beside what they replace, synchronised to the disk, and then renamed. A full disk, a crash or a
// kill leaves what was there before.
//
// What is no regular file (a device, a pipe, standard output by its name) or is a mount of its own cannot be replaced, and is written to as it is.
// Symbolic links are followed.
package wholefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// Write replaces the contents of one file, or makes it with mode perm, before the umask. Mode and owner of a file that is there stay.
func Write(path string, perm fs.FileMode, data []byte) error {
	var s Set
	s.Add(path, perm, bytesOf(data))
	return s.Commit()
}

// Install is Write, and the file then has mode perm whatever was there, the umask or its owner.
func Install(path string, perm fs.FileMode, data []byte) error {
	var s Set
	s.err = s.add(path, exactly(perm), bytesOf(data))
	return s.Commit()
}

func bytesOf(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// Create makes a file of mode perm that must not exist yet: else the error is fs.ErrExist, and the file stays as it is.
func Create(path string, perm fs.FileMode, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := place{path: path}.beside(exactly(perm))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlessGone(f.Cleanup())) }()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	if err := moveTo(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(dir)
}

// moveTo renames a file, and replaces nothing. Some file systems have no such renaming (network ones), others no second names (FAT).
func moveTo(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Link(from, to) // whoever wrote the first name removes it
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Set is files that appear together: all, or none. Only a crash in the moment of the last renames can leave some.
type Set struct {
	files []*file
	err   error // what went wrong first
}

// file is one of a set, written and not yet in its place.
type file struct {
	path   string // what to replace, links followed
	fresh  bool   // nothing is there yet
	saved  string // the replaced file's other name, until the set is whole; "" = it has none
	beside *renameio.PendingFile
	direct func() error // writes what cannot be replaced; nil = beside
}

// Add writes a file beside its place, with mode perm as in Write. Commit says what went wrong.
func (s *Set) Add(path string, perm fs.FileMode, write func(io.Writer) error) {
	if s.err == nil {
		s.err = s.add(path, unlessThere(perm), write)
	}
}

// mode is that of a file: perm where the file is new, before the umask, or exactly perm.
type mode struct {
	perm    fs.FileMode
	exactly bool
}

func exactly(perm fs.FileMode) mode     { return mode{perm, true} }
func unlessThere(perm fs.FileMode) mode { return mode{perm, false} }

func (s *Set) add(path string, m mode, write func(io.Writer) error) error {
	t, err := look(path)
	if err != nil {
		return err
	}
	if t.special {
		s.files = append(s.files, &file{path: path, direct: func() error { return inPlace(path, write) }})
		return nil
	}
	f, err := t.beside(m)
	if err != nil {
		return err
	}
	s.files = append(s.files, &file{path: t.path, fresh: t.info == nil, beside: f})
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	if err := f.Sync(); err != nil { // a full disk may show no sooner
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return nil
}

// Commit puts all files of the set in their places. On an error, be it of Add, none is, and nothing is left beside.
func (s *Set) Commit() (err error) {
	if s.err != nil {
		return errors.Join(s.err, s.discard())
	}
	var done []*file
	defer func() {
		for i := len(done) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, done[i].back())
		}
		for _, f := range done {
			if f.saved != "" {
				err = errors.Join(err, unlessGone(os.Remove(f.saved)))
			}
		}
		err = errors.Join(err, s.discard())
	}()
	for _, f := range s.files {
		if f.direct != nil {
			continue
		}
		if len(s.files) > 1 && !f.fresh {
			f.save()
		}
		if err := f.beside.CloseAtomicallyReplace(); err != nil {
			return fmt.Errorf("replace %s: %w", f.path, cause(err))
		}
		done = append(done, f)
	}
	for _, f := range s.files {
		if f.direct != nil {
			if err := f.direct(); err != nil {
				return err
			}
		}
	}
	for _, f := range done {
		if err := syncFolder(filepath.Dir(f.path)); err != nil {
			return err
		}
	}
	return nil
}

// discard removes what add has written, unless it is in its place.
func (s *Set) discard() error {
	var errs []error
	for _, f := range s.files {
		if f.beside != nil {
			errs = append(errs, f.beside.Cleanup())
		}
	}
	s.files = nil
	return errors.Join(errs...)
}

// save gives the file that will be replaced a second name. Where that is not possible it cannot be brought back.
func (f *file) save() {
	name := f.beside.Name() + ".replaced"
	if os.Link(f.path, name) == nil {
		f.saved = name
	}
}

// back undoes a replacement.
func (f *file) back() error {
	switch {
	case f.fresh:
		return os.Remove(f.path)
	case f.saved != "":
		return os.Rename(f.saved, f.path)
	}
	return nil
}

// place is where a file is to be written.
type place struct {
	path    string      // links followed
	info    fs.FileInfo // of the file that is there; nil = none is
	special bool        // not to be replaced
}

// look finds out what there is.
func look(path string) (place, error) {
	if strings.HasSuffix(path, "/") {
		return place{}, &fs.PathError{Op: "write", Path: path, Err: syscall.EISDIR}
	}
	t := place{path: path}
	for range 40 { // as many links as the kernel follows
		dir, err := filepath.EvalSymlinks(filepath.Dir(t.path))
		if err != nil {
			return t, err
		}
		t.path = filepath.Join(dir, filepath.Base(t.path))
		info, err := os.Lstat(t.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return t, nil
		case err != nil:
			return t, err
		case info.IsDir():
			return t, &fs.PathError{Op: "write", Path: path, Err: syscall.EISDIR}
		case strings.HasPrefix(t.path, "/proc/"): // a descriptor's: its link is not a path
			t.special = true
			return t, nil
		case info.Mode()&fs.ModeSymlink == 0:
			t.info, t.special = info, !info.Mode().IsRegular() || isMount(t.path)
			return t, nil
		}
		to, err := os.Readlink(t.path)
		if err != nil {
			return t, err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(t.path), to)
		}
		t.path = to
	}
	return t, &fs.PathError{Op: "write", Path: path, Err: syscall.ELOOP}
}

// isMount says that a file is mounted where it is, as container runtimes do with single files: nothing can be renamed onto it.
func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// beside opens the file that will take the place.
func (t place) beside(m mode) (*renameio.PendingFile, error) {
	options := []renameio.Option{renameio.WithTempDir(filepath.Dir(t.path)), renameio.WithPermissions(m.perm), renameio.WithExistingPermissions()}
	if m.exactly {
		options = append(options[:1], renameio.WithStaticPermissions(m.perm))
	}
	f, err := renameio.NewPendingFile(t.path, options...)
	if err != nil {
		return nil, fmt.Errorf("write beside %s: %w", t.path, cause(err))
	}
	if t.info == nil || m.exactly {
		return f, nil
	}
	if st, ok := t.info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		_ = f.Chown(int(st.Uid), int(st.Gid)) // only root can
	}
	return f, nil
}

// inPlace writes to what cannot be replaced.
func inPlace(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return nil
}

// Check says beforehand why Write to a path would fail: it does all but the renaming, in the folder where that will be.
func Check(path string) error {
	t, err := look(path)
	if err != nil {
		return err
	}
	if t.special {
		return accessible(path)
	}
	f, err := t.beside(exactly(0o600))
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 1<<12))
	err = errors.Join(err, f.Sync(), f.Cleanup())
	if err != nil {
		return fmt.Errorf("write beside %s: %w", path, cause(err))
	}
	return nil
}

// accessible says whether what cannot be replaced can be written to. It is not opened: a pipe would wait for its reader.
func accessible(path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// cause is an error without the name of the file beside, which says nothing to anybody.
func cause(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	}
	return err
}

// syncFolder has the names in a folder on the disk, where it may be read and its file system knows that.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return nil // the file itself is on the disk
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
