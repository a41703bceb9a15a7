// Package secretfile reads files that hold keys and passwords, and refuses those that are not secret.
package secretfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"weft/internal/plainfile"
)

// ErrExposed says that others than root and this process's user could have read a secret, or chosen it.
var ErrExposed = errors.New("it is no secret")

// Read returns what a file holds, most bytes at most. It refuses one that is anybody else's than root's or this process's user's, and
// one that others may read or write; the error says how to mend that. A Secret that Kubernetes has mounted may be readable. The file may be reached through symbolic links: it is the
// opened one that is looked at.
func Read(file string, most int) ([]byte, error) {
	return ReadUnlessSecret(file, most, func([]byte) bool { return true })
}

// forbidden are the bits that the mode of a secret may not have.
func forbidden(f *os.File) fs.FileMode {
	if secretVolume(f) {
		return 0o033
	}
	return 0o077
}

// secretVolume says whether an open file is of a Secret that Kubernetes has put into this pod: memory that nobody can write to
// from here. Its files may be read by all of the pod (mode 0644 unless told otherwise), which is this program, and the folder
// that the node has them in is the kubelet's alone.
func secretVolume(f *os.File) bool {
	if os.Getenv("KUBERNETES_SERVICE_HOST") == "" {
		return false
	}
	var on unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &on) == nil && on.Type == unix.TMPFS_MAGIC && on.Flags&unix.ST_RDONLY != 0
}

// ReadUnlessSecret is Read for a file that may do without secrets in it: one that others may read is refused only if hasSecret says
// that there is one; one that others own or may write to is refused in any case.
func ReadUnlessSecret(file string, most int, hasSecret func([]byte) bool) ([]byte, error) {
	f, err := plainfile.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := check(file, info, 0o022); err != nil {
		return nil, err
	}
	data, err := read(f, file, most)
	if err == nil && hasSecret(data) {
		err = check(file, info, forbidden(f))
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

func read(f *os.File, file string, most int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > most {
		return nil, fmt.Errorf("%s is longer than %d bytes: that is no key and no password", file, most)
	}
	return data, nil
}

// check refuses a file whose owner is somebody else, or whose mode has one of the given bits.
func check(file string, info fs.FileInfo, bits fs.FileMode) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%w: %s belongs to user %d, who may read and change it: chown root %s", ErrExposed, file, st.Uid, file)
	}
	if mode := info.Mode().Perm(); mode&bits != 0 {
		return fmt.Errorf("%w: %s has mode %04o, so that others may %s it: chmod 600 %s (a Secret of Kubernetes: defaultMode: 0400)", ErrExposed, file, mode, verb(mode&bits), file)
	}
	return nil
}

func verb(bits fs.FileMode) string {
	if bits&0o044 == 0 && bits&0o022 != 0 {
		return "change"
	}
	return "read"
}
