package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStatusEndsWithHowItIs stops every signer and the responder, and lets them go on one
// after the other: a script learns of it by the exit code alone.
func TestStatusEndsWithHowItIs(t *testing.T) {
	s := dev(t)
	until := func(what string, code int) {
		t.Helper()
		eventually(t, 60*time.Second, func() error {
			out, err := s.printed(t, "status", "-o", "json")
			var status struct{ Level string }
			if jerr := json.Unmarshal([]byte(out), &status); jerr != nil || exitCode(err) != code {
				return fmt.Errorf("%s: exit code %d, want %d (%v):\n%s", what, exitCode(err), code, jerr, out)
			}
			if want := map[int]string{0: "ok", 10: "degraded", 11: "down"}[code]; status.Level != want {
				return fmt.Errorf("%s: exit code %d and level %s", what, code, status.Level)
			}
			return nil
		})
	}
	until("all is well", 0)
	send := func(signal syscall.Signal, roles ...string) {
		t.Helper()
		for _, role := range roles {
			if err := syscall.Kill(s.pid(t, role), signal); err != nil {
				t.Error(err)
			}
		}
	}
	defer send(syscall.SIGCONT, "signer-1", "signer-2", "responder") // also when it ends early
	send(syscall.SIGSTOP, "signer-1", "signer-2", "responder")
	until("no signer is heard", 11)
	send(syscall.SIGCONT, "signer-1", "signer-2")
	until("the only responder is silent", 10)
	send(syscall.SIGCONT, "responder")
	until("all is well again", 0)
	if out, err := s.run(t, "status", "--gateway", "127.0.0.1:1", "--timeout", "1s"); exitCode(err) != 7 {
		t.Errorf("without a gateway the exit code is %d\n%s", exitCode(err), out)
	}
}

// TestTopGivesTheTerminalBack watches in a pseudo terminal and ends it in each way.
func TestTopGivesTheTerminalBack(t *testing.T) {
	s := dev(t)
	for name, end := range map[string]func(*terminal, *exec.Cmd) error{
		"q":       func(tty *terminal, _ *exec.Cmd) error { _, err := tty.keyboard.Write([]byte("q")); return err },
		"Ctrl-C":  func(tty *terminal, _ *exec.Cmd) error { _, err := tty.keyboard.Write([]byte{3}); return err },
		"SIGTERM": func(_ *terminal, cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			tty := openTerminal(t, 100, 20)
			before := tty.settings(t)
			cmd := s.command(t, "top", "--every", "1s")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = tty.program, tty.program, tty.program
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			// A screen is whole when the next one begins.
			eventually(t, 20*time.Second, func() error {
				if shown := tty.shown.String(); strings.Count(shown, "\x1b[Hcertmill is ") < 2 {
					return fmt.Errorf("shown: %q", shown)
				}
				return nil
			})
			if during := tty.settings(t); during.Lflag&unix.ECHO != 0 {
				t.Error("keys are echoed into the screen")
			}
			if err := end(tty, cmd); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("it ended with %v: %q", err, tty.shown)
				}
			case <-time.After(20 * time.Second):
				_ = cmd.Process.Kill()
				<-ended
				t.Fatal("it does not end")
			}
			if after := tty.settings(t); *after != *before {
				t.Errorf("the terminal was %+v and is %+v", before, after)
			}
			eventually(t, 10*time.Second, func() error { // what it wrote last is read by now
				if shown := tty.shown.String(); !strings.HasPrefix(shown, "\x1b[?1049h") || !strings.HasSuffix(shown, "\x1b[?1049l") {
					return fmt.Errorf("not entered and left: %q", shown)
				}
				return nil
			})
			for line := range strings.SplitSeq(tty.shown.String(), "\r\n") {
				if strings.Contains(line, "\n") {
					t.Errorf("a raw terminal would show stairs: %q", line)
				}
			}
		})
	}
}

// TestTopWritesPlainTextWhereThereIsNoTerminal looks for the bytes that only a terminal
// understands.
func TestTopWritesPlainTextWhereThereIsNoTerminal(t *testing.T) {
	s := dev(t)
	out, err := s.printed(t, "top", "--every", "1s", "--count", "2")
	if err != nil || strings.Count(out, "certmill is ") != 2 || strings.ContainsAny(out, "\x1b\r") {
		t.Errorf("%v: %q", err, out)
	}
}

// terminal is a pseudo terminal: a program has the one end, the test the other.
type terminal struct {
	keyboard, program *os.File
	shown             *lockedBuffer
}

func openTerminal(t *testing.T, width, height uint16) *terminal {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := keyboard.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
		}
	})
	if err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	program, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tty := &terminal{keyboard: keyboard, program: program, shown: &lockedBuffer{}}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(tty.shown, keyboard) // it ends with the terminal
	}()
	t.Cleanup(func() {
		_ = program.Close()
		_ = keyboard.Close()
		<-read
	})
	return tty
}

func (tty *terminal) settings(t *testing.T) *unix.Termios {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(tty.program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return settings
}
