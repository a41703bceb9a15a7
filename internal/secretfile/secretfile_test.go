package secretfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/internal/secretfile"
)

func TestRead(t *testing.T) {
	nettest.RequireRoot(t)
	dir := t.TempDir()
	for name, c := range map[string]struct {
		mode fs.FileMode
		uid  int
		says string // "" = it is read
		open string // what ReadUnlessSecret says of a file without a secret in it
	}{
		"fine":            {0o600, 0, "", ""},
		"read only":       {0o400, 0, "", ""},
		"for the group":   {0o640, 0, "others may read it: chmod 600", ""},
		"for everybody":   {0o644, 0, "others may read it: chmod 600", ""},
		"to be changed":   {0o622, 0, "others may change it: chmod 600", "others may change it: chmod 600"},
		"open":            {0o666, 0, "mode 0666, so that others may ", "others may change it: chmod 600"},
		"somebody else's": {0o600, 65534, "belongs to user 65534, who may read and change it: chown root", "belongs to user 65534"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := errors.Join(os.WriteFile(file, []byte("x y\n"), 0o600), os.Chmod(file, c.mode), os.Chown(file, c.uid, 0)); err != nil {
				t.Fatal(err)
			}
			link := file + "-link"
			if err := os.Symlink(file, link); err != nil {
				t.Fatal(err)
			}
			holds := func(what string) func([]byte) bool {
				return func(b []byte) bool { return bytes.Contains(b, []byte(what)) }
			}
			for at, got := range map[string]func() ([]byte, error){
				c.says:           func() ([]byte, error) { return secretfile.Read(file, 4) },
				c.says + "\x00":  func() ([]byte, error) { return secretfile.Read(link, 100) },
				c.says + "\x00s": func() ([]byte, error) { return secretfile.ReadUnlessSecret(file, 100, holds("y")) },
				c.open + "\x00o": func() ([]byte, error) { return secretfile.ReadUnlessSecret(file, 100, holds("no")) },
			} {
				says, _, _ := strings.Cut(at, "\x00")
				data, err := got()
				switch {
				case says == "" && (err != nil || string(data) != "x y\n"):
					t.Errorf("%q, %v", data, err)
				case says != "" && (!errors.Is(err, secretfile.ErrExposed) || !strings.Contains(err.Error(), says) || data != nil):
					t.Errorf("%q, %v; want %q", data, err, says)
				}
			}
		})
	}
}

func TestReadBounds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if _, err := secretfile.Read(file, 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(file, make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secretfile.Read(file, 10); err == nil || !strings.Contains(err.Error(), "longer than 10 bytes") {
		t.Errorf("a file too long: %v", err)
	}
	if data, err := secretfile.Read(file, 11); err != nil || len(data) != 11 {
		t.Errorf("a file of just the length: %d bytes, %v", len(data), err)
	}
}

// In a pod a Secret is a read-only tmpfs, whose files have mode 0644 unless told otherwise; what is no such file stays refused.
func TestSecretVolume(t *testing.T) {
	nettest.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("secret", dir, "tmpfs", unix.MS_NOSUID, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	// As the kubelet lays it out.
	file := filepath.Join(dir, "password")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "..1"), 0o755), os.WriteFile(filepath.Join(dir, "..1", "password"), []byte("x\n"), 0o644),
		os.Symlink("..1", filepath.Join(dir, "..data")), os.Symlink("..data/password", file)); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if _, err := secretfile.Read(file, 100); !errors.Is(err, secretfile.ErrExposed) {
			t.Errorf("%s: %v", when, err)
		}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	refused("a tmpfs to be written to")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID, ""); err != nil {
		t.Fatal(err)
	}
	for what, read := range map[string]func() ([]byte, error){
		"Read": func() ([]byte, error) { return secretfile.Read(file, 100) },
		"ReadUnlessSecret": func() ([]byte, error) {
			return secretfile.ReadUnlessSecret(file, 100, func([]byte) bool { return true })
		},
	} {
		if data, err := read(); err != nil || string(data) != "x\n" {
			t.Errorf("%s of a Secret: %q, %v", what, data, err)
		}
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	refused("outside of a pod")
}
