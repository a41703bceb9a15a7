package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"weft/perf"
	"weft/perf/report"
)

// write puts the result where it was asked for.
func (f *labFlags) write(cmd *cobra.Command, r *perf.Result) error {
	out := cmd.OutOrStdout()
	if *f.format == asJSON {
		if err := writeJSON(out, r); err != nil {
			return err
		}
	} else if err := report.Table(out, r); err != nil {
		return err
	}
	asJSON := func(w io.Writer) error { return writeJSON(w, r) }
	if f.json != "" {
		if err := writeFile(f.json, asJSON); err != nil {
			return err
		}
	}
	if f.out == "" {
		return nil
	}
	err := errors.Join(
		writeFile(filepath.Join(f.out, "result.json"), asJSON),
		writeFile(filepath.Join(f.out, "result.csv"), func(w io.Writer) error { return report.CSV(w, r) }),
		writeFile(filepath.Join(f.out, "table.txt"), func(w io.Writer) error { return report.Table(w, r) }),
		writeFile(filepath.Join(f.out, "report.html"), func(w io.Writer) error { return report.HTML(w, r) }),
	)
	if err == nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "results: %s\nreport:  %s\n", f.out, filepath.Join(f.out, "report.html"))
	}
	return err
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("results: write %s: %w", path, err)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
