// Package history keeps what one run after another found, its figures without their samples, in a file of bounded size: one JSON object a
// line, the oldest first.
package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"weft/internal/wholefile"
	"weft/perf/probe"
	"weft/perf/result"
)

// Schema names the form of an Entry. It changes when a reader of the old one would be wrong.
const Schema = "weft.bench-history/1"

// Least is the smallest bound of a file, bytes: room for some runs.
const Least = 64 << 10

// Entry is one run.
type Entry struct {
	Schema  string           `json:"schema"`
	At      time.Time        `json:"at"`              // when it began
	Seconds float64          `json:"seconds"`         // it took
	Spent   float64          `json:"core_seconds"`    // processor time of all hosts together, above what they did besides
	Error   string           `json:"error,omitempty"` // why there is nothing of it
	Figures []Figure         `json:"figures,omitempty"`
	Failed  []result.Failure `json:"failed,omitempty"`
	Corrupt uint64           `json:"corrupt,omitempty"` // bytes that arrived other than they were sent
}

// Figure is a row of a result without its samples.
type Figure struct {
	Contender string        `json:"contender"`
	Path      string        `json:"path,omitempty"`
	Test      string        `json:"test"`
	Params    probe.Params  `json:"params"`
	Metric    string        `json:"metric"`
	Unit      string        `json:"unit"`
	Median    result.Figure `json:"median"` // null = the run has no answer
	Low       result.Figure `json:"low"`
	High      result.Figure `json:"high"`
	InnerMTU  int           `json:"inner_mtu"`
}

// Selection is the test as a person would type it.
func (f Figure) Selection() string { return probe.Selection{Test: f.Test, Params: f.Params}.String() }

// Of is the entry of a run that began and took so long; r is nil where err is all that came of it.
func Of(at time.Time, took time.Duration, r *result.Result, err error) Entry {
	e := Entry{Schema: Schema, At: at.UTC().Truncate(time.Millisecond), Seconds: took.Seconds()}
	if err != nil {
		e.Error = err.Error()
	}
	if r == nil {
		return e
	}
	e.Spent, e.Failed, e.Corrupt = spent(r), r.Failed, r.Verified().Corrupt
	for _, u := range r.Unsupported {
		e.Failed = append(e.Failed, result.Failure{Contender: u.Contender, Reason: u.Reason})
	}
	for _, row := range r.Results {
		e.Figures = append(e.Figures, Figure{row.Contender, row.Path, row.Test, row.Params, row.Metric, row.Unit, row.Median, row.Low, row.High, row.InnerMTU})
	}
	return e
}

// spent is the processor time of a run's samples, seconds, all of its hosts together.
func spent(r *result.Result) (seconds float64) {
	last := ""
	for _, row := range r.Results { // the rows of one test of one contender are beside each other, and have the same cost
		one := row.Contender + "\x00" + row.Path + "\x00" + probe.Selection{Test: row.Test, Params: row.Params}.String()
		if one != last {
			seconds += (row.CPU.User + row.CPU.System + row.CPU.SoftIRQ) * r.Settings.Duration * float64(r.Settings.Repeat+r.Settings.Warmup)
		}
		last = one
	}
	return seconds
}

// File is a history that is being written. One goroutine uses it.
type File struct {
	path    string
	most    int64
	size    int64
	entries []Entry
	lines   [][]byte // of entries
}

// Open reads the history in a file, which need not be there yet, and which will not be larger than most bytes. A line that a crash cut
// short is left out.
func Open(path string, most int64) (*File, error) {
	if most < Least {
		return nil, fmt.Errorf("a history of %d bytes: give at least %d", most, Least)
	}
	f := &File{path: path, most: most}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the history: %w", err)
	}
	entries, lines, whole := read(data)
	if len(data) > 0 && len(entries) == 0 {
		return nil, fmt.Errorf("the history: %s is something else: name another folder, or take it away", path)
	}
	f.entries, f.lines, f.size = entries, lines, int64(len(data))
	if !whole || f.size > most {
		return f, f.shorten(0)
	}
	return f, nil
}

// Read reads a history's file.
func Read(path string) ([]Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the history: %w", err)
	}
	entries, _, _ := read(data)
	if len(entries) == 0 {
		return nil, fmt.Errorf("the history: %s holds no run of `weft bench run --every`", path)
	}
	return entries, nil
}

// read returns the entries and their lines, and whether nothing else is there.
func read(data []byte) (entries []Entry, lines [][]byte, whole bool) {
	whole = true
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		data = rest
		var e Entry
		if json.Unmarshal(line, &e) != nil || e.Schema != Schema || e.At.IsZero() {
			whole = false
			continue
		}
		whole = whole && ended
		entries, lines = append(entries, e), append(lines, append(bytes.Clone(line), '\n'))
	}
	return entries, lines, whole
}

// Entries are all runs, the oldest first. The caller does not change them.
func (f *File) Entries() []Entry { return f.entries[:len(f.entries):len(f.entries)] }

// Size is that of the file, bytes.
func (f *File) Size() int64 { return f.size }

// Add writes a run behind the others. Where it has no room, the oldest half of the file goes.
func (f *File) Add(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("the history: %w", err)
	}
	line = append(line, '\n')
	if int64(len(line)) > f.most/2 {
		return fmt.Errorf("the history: a run takes %d bytes, of %d for all: give it more room", len(line), f.most)
	}
	f.entries, f.lines = append(f.entries, e), append(f.lines, line)
	if f.size+int64(len(line)) > f.most {
		return f.shorten(f.most / 2)
	}
	to, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = to.Write(line)
		err = errors.Join(err, to.Close())
	}
	if err != nil { // half a line, perhaps
		return errors.Join(fmt.Errorf("the history: %w", err), f.shorten(f.most))
	}
	f.size += int64(len(line))
	return nil
}

// shorten writes the newest entries anew that fit into so many bytes; 0 = into the bound.
func (f *File) shorten(room int64) error {
	if room == 0 {
		room = f.most
	}
	first, size := len(f.lines), int64(0)
	for first > 0 && size+int64(len(f.lines[first-1])) <= room {
		first--
		size += int64(len(f.lines[first]))
	}
	f.entries, f.lines, f.size = f.entries[first:], f.lines[first:], size
	var set wholefile.Set
	set.Add(f.path, 0o644, func(w io.Writer) error {
		_, err := w.Write(bytes.Join(f.lines, nil))
		return err
	})
	if err := set.Commit(); err != nil {
		return fmt.Errorf("the history: %w", err)
	}
	return nil
}
