package main

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// plain is text that others wrote (names in a store, a file's contents, a peer's words) as a terminal may show it: what would move the
// cursor, change colours or the direction of writing, end the line or forge a column is written as \u001b and the like, which is JSON as well. It is
// what every table, answer and error of a command passes through: row for what stands in a column, plainWriter for all the rest.
func plain(s string) string { return escape(s, false) }

// escape is plain; lines keeps ends of lines and tabs, which are a table's own.
func escape(s string, lines bool) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return hazardous(r, lines) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !hazardous(r, lines):
			b.WriteRune(r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// hazardous are control characters of all kinds (Cc: C0, DEL, C1), and format characters (Cf: among them those that turn the direction of
// writing). A byte that is no UTF-8 is one, too: a terminal may take it for C1.
func hazardous(r rune, lines bool) bool {
	if lines && (r == '\n' || r == '\t') {
		return false
	}
	return r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf)
}

// plainWriter passes on what is written to it as escape has it. A character that comes in two pieces is put together.
type plainWriter struct {
	to   io.Writer
	rest []byte
}

func (p *plainWriter) Write(b []byte) (int, error) {
	whole := append(p.rest, b...)
	cut := len(whole)
	for i := len(whole) - 1; i >= 0 && i > len(whole)-utf8.UTFMax; i-- {
		if utf8.RuneStart(whole[i]) {
			if !utf8.FullRune(whole[i:]) {
				cut = i
			}
			break
		}
	}
	p.rest = append([]byte(nil), whole[cut:]...)
	if _, err := io.WriteString(p.to, escape(string(whole[:cut]), true)); err != nil {
		return 0, err
	}
	return len(b), nil
}
