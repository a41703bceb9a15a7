package main

import (
	"errors"

	"weft/api"
	"weft/internal/config/strict"
	"weft/node/daemon"
	"weft/perf/probe"
)

// Exit codes, as docs/reference.md lists them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnsupported = 3
	exitUnreachable = 4
	exitCorrupt     = probe.ExitCorrupt
	exitInterrupted = 130
)

// usageError is a command line that cannot be understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// unsupportedError is something this machine cannot do; its text is the reason.
type unsupportedError struct{ error }

func (e unsupportedError) Unwrap() error { return e.error }

// exitCode is the one place that turns an error into what the process ends with.
func exitCode(err error, interrupted bool) int {
	var (
		corrupt     *probe.CorruptError
		own         interface{ ExitCode() int }
		usage       usageError
		unsupported unsupportedError
		mistakes    strict.Errors
	)
	switch {
	case interrupted:
		return exitInterrupted
	case err == nil:
		return exitDone
	case errors.As(err, &corrupt):
		return exitCorrupt
	case errors.As(err, &own):
		return own.ExitCode()
	case errors.As(err, &usage), errors.As(err, &mistakes), errors.Is(err, daemon.ErrConfiguration):
		return exitUsage
	case errors.As(err, &unsupported):
		return exitUnsupported
	case errors.Is(err, api.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailed
}
