package loadtest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/certmill/certmill/loadtest/report"
)

// exitError ends the program with a code of its own.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// ExitCode is the process's exit code.
func (e *exitError) ExitCode() int { return e.code }

// The exit codes beside those of every command, which exitFailed and exitUsage are.
const (
	exitFailed = 1
	exitUsage  = 2
	// ExitObjective: the objective was not held.
	ExitObjective = 8
	// ExitWrong: an answer was wrong. It outweighs a missed objective.
	ExitWrong = 9
)

// usageError is a mistake in the command line, or in a file that it names.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// ExitCode is the process's exit code.
func (usageError) ExitCode() int { return exitUsage }

// usage makes err, if there is one, a mistake in the command line.
func usage(err error) error {
	if err == nil || interrupted(err) {
		return err
	}
	return usageError{err}
}

// nothingMeasured is the error of a command that has no result.
func nothingMeasured(err error) error {
	switch {
	case err == nil:
		return &exitError{exitFailed, "no request was due in the counted time: the rate is too low for its --duration"}
	case interrupted(err):
		return &exitError{exitFailed, "interrupted before anything was measured"}
	}
	return err
}

// ended is the error of a command that err has ended, and whose result has been delivered
// with a verdict.
func ended(verdict, err error) error {
	switch {
	case !interrupted(err):
		return errors.Join(verdict, err)
	case verdict == nil:
		return &exitError{exitFailed, "interrupted: the figures are of what was measured until then"}
	}
	return verdict
}

// verdict turns a result into the command's error.
func verdict(r *report.Result) error {
	switch n := r.Wrong(); {
	case n > 0:
		return &exitError{ExitWrong, fmt.Sprintf("%d WRONG ANSWERS; the first: %s", n, firstWrong(r))}
	case len(r.Missed) > 0:
		return &exitError{ExitObjective, "the objective was not held: " + strings.Join(r.Missed, "; ")}
	}
	for i := range r.Runs {
		if err := errors.Join(nothingAnswered(&r.Runs[i]), nothingChecked(&r.Runs[i])); err != nil {
			return err
		}
	}
	return nil
}

// nothingAnswered fails a run that had no answer at all: it has measured nothing.
func nothingAnswered(r *report.Run) error {
	if r.OK > 0 || r.Ended == report.Interrupted {
		return nil
	}
	if len(r.Errors) == 0 {
		return &exitError{exitFailed, "no request was answered"}
	}
	return &exitError{exitFailed, fmt.Sprintf("all %d requests failed; the first, %s: %s", r.Failed, r.Errors[0].Kind, r.Errors[0].Example)}
}

// nothingChecked fails a run in which checks were asked for and none could be made.
func nothingChecked(r *report.Run) error {
	c := &r.Checks
	if c.Checked > 0 || c.Unmade+c.Skipped == 0 {
		return nil
	}
	why := c.UnmadeWhy
	if why == "" {
		why = "they were not done in time"
	}
	return &exitError{exitFailed, fmt.Sprintf("none of %d checks could be made: %s", c.Unmade+c.Skipped, why)}
}

func firstWrong(r *report.Result) string {
	for i := range r.Runs {
		if e := r.Runs[i].Checks.Examples; len(e) > 0 {
			return e[0].Why
		}
	}
	return "unknown"
}

// interrupted reports whether a run ended since a person asked for it; its results
// count.
func interrupted(err error) bool { return errors.Is(err, context.Canceled) }
