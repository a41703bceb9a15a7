package wholefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// disk is a small file system of the test's own.
func disk(t *testing.T) string {
	t.Helper()
	nettest.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("weft-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no room on a disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<17), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

// holds says that a folder has these files and no others; a name without text is not read.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, slices.Sorted(maps.Keys(want))) {
		t.Errorf("the folder holds %q, want %q", names, slices.Sorted(maps.Keys(want)))
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); text != "" && (err != nil || string(got) != text) {
			t.Errorf("%s holds %q, want %q: %v", name, got, text, err)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := Write(file, 0o600, []byte("first")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// What is there keeps its mode and, as far as this process may, its owner; whoever has it open keeps the old text.
	if err := os.Chmod(file, 0o604); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 1234, 2345); err != nil {
			t.Fatal(err)
		}
	}
	reader, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	if err := Write(link, 0o600, []byte("second")); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, map[string]string{"f": "second", "link": "second"})
	after, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := before.Sys().(*syscall.Stat_t), after.Sys().(*syscall.Stat_t); after.Mode() != 0o604 || a.Uid != b.Uid || a.Gid != b.Gid || a.Ino == b.Ino {
		t.Errorf("mode %v, owner %d:%d, inode %d; was %v, %d:%d, %d", after.Mode(), b.Uid, b.Gid, b.Ino, before.Mode(), a.Uid, a.Gid, a.Ino)
	}
	if old, err := io.ReadAll(reader); err != nil || string(old) != "first" {
		t.Errorf("a reader of the old file has %q, %v", old, err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	if err := Install(file, 0o755, []byte("installed")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o755 {
		t.Errorf("installed with mode %v, %v", info.Mode(), err)
	}
	// A link to what is not there yet makes it.
	if err := os.Symlink(filepath.Join(dir, "new"), filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "dangling"), 0o600, []byte("made")); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, map[string]string{"f": "installed", "link": "installed", "new": "made", "dangling": "made"})
}

// TestFullDisk: on a full disk everything stays as it was, and nothing is left beside.
func TestFullDisk(t *testing.T) {
	dir := disk(t)
	in := func(name string) string { return filepath.Join(dir, name) }
	put(t, in("a"), "old a")
	put(t, in("b"), "old b")
	fill(t, dir)
	want := map[string]string{"a": "old a", "b": "old b", "fill": ""}
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), dir+"/.") {
			t.Errorf("%s: %v", what, err)
		}
		holds(t, dir, want)
	}
	full("write", Write(in("a"), 0o600, []byte("new a")))
	full("write a new one", Write(in("c"), 0o600, []byte("new c")))
	full("check", Check(in("a")))
	full("create", Create(in("c"), 0o600, []byte("new c")))
	s := Stream{Path: in("a"), Perm: 0o600}
	_, err := s.Write([]byte("new a"))
	full("stream", errors.Join(err, s.Close()))

	// There is room for the first file of a set, and not for the second.
	if err := os.Truncate(in("fill"), 1<<15); err != nil {
		t.Fatal(err)
	}
	var set Set
	set.Add(in("a"), 0o600, say("new a"))
	set.Add(in("b"), 0o600, say(strings.Repeat("b", 1<<16)))
	set.Add(in("c"), 0o600, say("new c"))
	full("set", set.Commit())
}

func say(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

// TestSet: files appear together. Where one cannot take its place, those before it are as they were.
func TestSet(t *testing.T) {
	for last, fails := range map[string]bool{"z": false, "folder": true} {
		t.Run(last, func(t *testing.T) {
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			put(t, in("a"), "old a")
			put(t, in("z"), "old z")
			put(t, in("folder"), "old folder")
			var s Set
			for _, name := range []string{"a", "new", last} {
				s.Add(in(name), 0o600, say("new "+name))
				if got, err := os.ReadFile(in(name)); err == nil && string(got) != "old "+name {
					t.Errorf("before the commit %s holds %q", name, got)
				}
			}
			if err := errors.Join(os.Remove(in("folder")), os.Mkdir(in("folder"), 0o700)); err != nil {
				t.Fatal(err)
			}
			err := s.Commit()
			if (err != nil) != fails {
				t.Errorf("commit: %v", err)
			}
			want := map[string]string{"a": "new a", "new": "new new", "z": "new z", "folder": ""}
			if fails {
				want = map[string]string{"a": "old a", "z": "old z", "folder": ""}
			}
			holds(t, dir, want)
		})
	}
	dir, broken := t.TempDir(), errors.New("broken")
	put(t, filepath.Join(dir, "a"), "old")
	var s Set
	s.Add(filepath.Join(dir, "a"), 0o600, say("new"))
	s.Add(filepath.Join(dir, "b"), 0o600, func(io.Writer) error { return broken })
	if err := s.Commit(); !errors.Is(err, broken) {
		t.Errorf("a writer's error: %v", err)
	}
	holds(t, dir, map[string]string{"a": "old"})
}

// TestSpecial: what cannot be replaced is written to.
func TestSpecial(t *testing.T) {
	nettest.RequireRoot(t)
	dir := t.TempDir()
	if err := errors.Join(Check(os.DevNull), Write(os.DevNull, 0o600, []byte("nothing"))); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		t.Fatalf("%s is %v, %v", os.DevNull, info, err)
	}

	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Check(pipe); err != nil { // and does not wait
		t.Error(err)
	}
	said := make(chan string, 1)
	go func() {
		text, _ := os.ReadFile(pipe)
		said <- string(text)
	}()
	if err := Write(pipe, 0o600, []byte("through the pipe")); err != nil {
		t.Error(err)
	}
	if text := <-said; text != "through the pipe" {
		t.Errorf("the pipe said %q", text)
	}

	open, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := Write(fmt.Sprintf("/dev/fd/%d", open.Fd()), 0o600, []byte("by its descriptor")); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(open.Name())
	if err != nil {
		t.Fatal(err)
	}
	if mine, err := open.Stat(); err != nil || !os.SameFile(info, mine) || info.Size() != int64(len("by its descriptor")) {
		t.Errorf("what is open was replaced: %v", err)
	}

	mounted := filepath.Join(dir, "mounted")
	put(t, mounted, "")
	if err := unix.Mount(open.Name(), mounted, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(mounted, 0) }()
	if err := errors.Join(Check(mounted), Write(mounted, 0o600, []byte("through the mount"))); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(open.Name()); err != nil || string(text) != "through the mount" {
		t.Errorf("what is mounted holds %q, %v", text, err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "f"), "text")
	for path, want := range map[string]error{
		"f": nil, "new": nil, ".": syscall.EISDIR, "new/": syscall.EISDIR, "missing/f": syscall.ENOENT, "f/f": syscall.ENOTDIR,
	} {
		if err := Check(dir + "/" + path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if err := Check(loop); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	holds(t, dir, map[string]string{"f": "text", "loop": ""})

	readOnly := disk(t)
	put(t, filepath.Join(readOnly, "f"), "text")
	if err := unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "new"} {
		if err := Check(filepath.Join(readOnly, name)); !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s on a read-only disk: %v", name, err)
		}
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := Create(file, 0o600, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if err := Create(file, 0o600, []byte("another's")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that exists: %v", err)
	}
	holds(t, dir, map[string]string{"f": "mine"})
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestStream: what was there stays until there is something else, which can be read while it grows.
func TestStream(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	put(t, file, "old")
	s := Stream{Path: file, Perm: 0o600}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, map[string]string{"f": "old"})
	for i, want := range []string{"1", "12", "123"} {
		if _, err := s.Write([]byte{'1' + byte(i)}); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, map[string]string{"f": want})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := (&Stream{Path: os.DevNull}).Write([]byte("nothing")); n != 7 || err != nil {
		t.Errorf("wrote %d to %s: %v", n, os.DevNull, err)
	}
	if _, err := (&Stream{Path: dir}).Write([]byte("x")); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a stream into a folder: %v", err)
	}
}
