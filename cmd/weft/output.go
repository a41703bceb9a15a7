package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// format is the value of -o: text or json. A wrong one is refused with the command line.
type format string

const (
	asText format = "text"
	asJSON format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

// Set implements pflag.Value.
func (f *format) Set(s string) error {
	if s != string(asText) && s != string(asJSON) {
		return fmt.Errorf("write text or json")
	}
	*f = format(s)
	return nil
}

// formatFlag adds -o to a command that prints.
func formatFlag(c *cobra.Command) *format {
	f := asText
	c.Flags().VarP(&f, "output", "o", "text or json")
	return &f
}

// show prints v as JSON, or as the text that rows writes into aligned columns.
func show(w io.Writer, f format, v any, rows func(io.Writer)) error {
	if f == asJSON {
		return writeJSON(w, v)
	}
	t := tabwriter.NewWriter(&plainWriter{to: w}, 0, 0, 2, ' ', 0)
	rows(t)
	return t.Flush()
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, plain(fmt.Sprint(c)))
	}
	fmt.Fprintln(w)
}

// commas joins what can be printed; "-" is none.
func commas[T any](list []T) string {
	if len(list) == 0 {
		return "-"
	}
	words := make([]string, len(list))
	for i := range list {
		words[i] = fmt.Sprint(list[i])
	}
	return strings.Join(words, ",")
}

// pairs prints a map in the order of its keys; "-" is none.
func pairs[V any](m map[string]V) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		words = append(words, fmt.Sprintf("%s %v", k, m[k]))
	}
	if words == nil {
		return "-"
	}
	return strings.Join(words, ", ")
}

// age prints how long ago t was, by the clock that says now; "never" for the zero time.
func age(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return max(now.Sub(t), 0).Round(time.Second).String() + " ago"
}

// short prints a count in three digits or so: 1204, 12.3k, 4.56M.
func short(n float64) string {
	switch {
	case n < 10000:
		return fmt.Sprintf("%.0f", n)
	case n < 1e6:
		return fmt.Sprintf("%.1fk", n/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.2fM", n/1e6)
	}
	return fmt.Sprintf("%.2fG", n/1e9)
}
