package main

// labError is an error with the exit code it makes.
type labError struct {
	error
	code int
}

func (e *labError) Unwrap() error { return e.error }

// ExitCode is what the process ends with.
func (e *labError) ExitCode() int { return e.code }

func labUsage(err error) error       { return &labError{err, 2} }
func labUnsupported(err error) error { return &labError{err, 3} }
func labInterrupted(err error) error { return &labError{err, 130} }
