package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"weft/internal/wholefile"
	"weft/perf/history"
	"weft/perf/report"
	"weft/perf/result"
)

// resultFlags say where a result goes.
type resultFlags struct {
	json, out string
	format    *format
	made      []string        // folders for results that were not there
	past      []history.Entry // runs that the page shows besides, this one included
}

// write puts the result where it was asked for: into files first, since nobody may be there to read standard output any more.
func (f *resultFlags) write(cmd *cobra.Command, r *result.Result) error {
	err := f.writeFiles(r)
	print := report.Table
	if *f.format == asJSON {
		print = asResult
	}
	if err := errors.Join(err, print(cmd.OutOrStdout(), r)); err != nil {
		return err
	}
	if f.out != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "results: %s\nreport:  %s\n", f.out, filepath.Join(f.out, pageName))
	}
	return nil
}

// page writes the page to look at.
func (f *resultFlags) page(w io.Writer, r *result.Result) error { return report.HTML(w, r, f.past...) }

func asResult(w io.Writer, r *result.Result) error { return writeJSON(w, r) }

func (f *resultFlags) writeFiles(r *result.Result) error {
	var set wholefile.Set
	for _, t := range f.targets() {
		set.Add(t.path, 0o644, func(w io.Writer) error { return t.write(w, r) })
	}
	if err := set.Commit(); err != nil {
		return fmt.Errorf("results: %w", rescue(r, err))
	}
	return nil
}

// Files in a folder of results: one to look at, one to compare.
const (
	pageName   = "report.html"
	resultName = "result.json"
)

// target is a file that a result goes to, in one of its forms.
type target struct {
	flag, path string
	write      func(io.Writer, *result.Result) error
}

// targets lists the files that were asked for.
func (f *resultFlags) targets() (list []target) {
	if f.json != "" {
		list = append(list, target{"--json", f.json, asResult})
	}
	if f.out == "" {
		return list
	}
	for _, t := range []target{{"", resultName, asResult}, {"", "result.csv", report.CSV}, {"", "table.txt", report.Table}, {"", pageName, f.page}} {
		list = append(list, target{"--out", filepath.Join(f.out, t.path), t.write})
	}
	return list
}

// checkTargets tries the files before anything is measured. It makes the folders that are missing.
func (f *resultFlags) checkTargets() error {
	if f.out != "" {
		if err := f.makeFolder(f.out); err != nil {
			return fmt.Errorf("--out %s: %w: name a folder, or one that can be made", f.out, err)
		}
	}
	seen := map[string]string{}
	for _, t := range f.targets() {
		path, err := filepath.Abs(t.path)
		if err != nil {
			return fmt.Errorf("%s %s: %w", t.flag, t.path, err)
		}
		if other := seen[path]; other != "" && filepath.Base(path) != resultName { // which is the same from both
			return fmt.Errorf("%s and %s both write %s: name another file", other, t.flag, t.path)
		}
		seen[path] = t.flag
		if t.flag == "--json" {
			if err := f.makeFolder(filepath.Dir(path)); err != nil {
				return fmt.Errorf("--json %s: %w", t.path, err)
			}
		}
		if err := checkTarget(t.path, resultName); err != nil {
			return fmt.Errorf("%s %s: %w", t.flag, t.path, err)
		}
	}
	return nil
}

// makeFolder makes a folder and what is missing above it, and remembers what it made.
func (f *resultFlags) makeFolder(dir string) error {
	for missing := dir; ; missing = filepath.Dir(missing) {
		if _, err := os.Lstat(missing); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		f.made = append(f.made, missing)
	}
	return os.MkdirAll(dir, 0o755)
}

// unmake takes folders away again that were made for results which never came. What somebody has put into them stays.
func (f *resultFlags) unmake() {
	slices.SortFunc(f.made, func(a, b string) int { return cmp.Compare(len(b), len(a)) }) // the lowest first
	for _, dir := range f.made {
		_ = os.Remove(dir)
	}
}

// checkTarget says what is wrong with a file to write to, with the remedy; name is what such a file may be called.
func checkTarget(path, name string) error {
	err := wholefile.Check(path)
	switch {
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("this is a folder: name a file, %s say", filepath.Join(path, name))
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: make room, or name another place", err)
	case err != nil:
		return fmt.Errorf("%w: name a file that can be written", err)
	}
	return nil
}

// rescue keeps a result that could not be written where it should go, so that the measuring was not for nothing.
func rescue(r *result.Result, why error) error {
	file, err := os.CreateTemp("", "weft-lab-*.json")
	if err != nil {
		return errors.Join(why, err)
	}
	if err := errors.Join(writeJSON(file, r), file.Sync(), file.Close()); err != nil {
		return errors.Join(why, err, os.Remove(file.Name()))
	}
	return fmt.Errorf("%w: the result is in %s instead", why, file.Name())
}

// writeFile writes one file whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	var set wholefile.Set
	set.Add(path, 0o644, write)
	return set.Commit()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(&plainWriter{to: w})
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
