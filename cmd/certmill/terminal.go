package main

import (
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// What a terminal is told. The second screen keeps what stood in the first.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	toLineEnd   = "\x1b[K"
	toScreenEnd = "\x1b[J"
)

// The keys that end a screen. A raw terminal makes no signal of Ctrl-C.
const endKeys = "qQ\x03"

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// screen is a terminal while it shows one thing that changes. leave gives it back as it
// was.
type screen struct {
	out  *os.File
	tty  *os.File    // its keys; nil where they cannot be waited for, as without /dev/tty
	was  *term.State // of tty
	quit context.CancelFunc
	read chan struct{} // closed when nobody reads tty any more
}

// enterTerminal takes the terminal over. The context that it returns ends when a key of
// endKeys is pressed.
func enterTerminal(ctx context.Context, out *os.File) (context.Context, *screen) {
	ctx, quit := context.WithCancel(ctx)
	s := &screen{out: out, quit: quit, read: make(chan struct{})}
	s.listen()
	go func() {
		defer close(s.read)
		defer quit()
		s.waitForEnd(ctx)
	}()
	_, _ = io.WriteString(out, enterScreen)
	return ctx, s
}

// listen opens the keys, unless this system cannot end a read of them: then Ctrl-C is
// the signal that it always was.
func (s *screen) listen() {
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY, 0)
	if err != nil {
		return
	}
	if tty.SetReadDeadline(time.Time{}) == nil {
		if raw, err := tty.SyscallConn(); err == nil { // Fd would make reads block for good
			_ = raw.Control(func(fd uintptr) { s.was, _ = term.MakeRaw(int(fd)) })
		}
	}
	if s.was == nil {
		_ = tty.Close()
		return
	}
	s.tty = tty
}

// waitForEnd returns when ctx ends, when an end key is pressed, or when leave stops it.
func (s *screen) waitForEnd(ctx context.Context) {
	if s.tty == nil {
		<-ctx.Done()
		return
	}
	key := make([]byte, 16)
	for {
		n, err := s.tty.Read(key)
		if err != nil || strings.ContainsAny(string(key[:n]), endKeys) {
			return
		}
	}
}

// leave gives the terminal back, and ends the context of enterTerminal.
func (s *screen) leave() {
	s.quit()
	if s.tty != nil {
		_ = s.tty.SetReadDeadline(time.Now())
	}
	<-s.read
	_, _ = io.WriteString(s.out, leaveScreen)
	if s.tty == nil {
		return
	}
	if raw, err := s.tty.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = term.Restore(int(fd), s.was) })
	}
	_ = s.tty.Close()
}

// show draws text over what stood there, in one write, so that it does not flicker.
func (s *screen) show(text string) error {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 1 || height < 1 {
		width, height = 80, 24
	}
	_, err = io.WriteString(s.out, frame(text, width, height))
	return err
}

// frame makes text fill a screen of width by height: a line that is too long is cut, and
// so are lines below the last, of which the last says how many there are.
func frame(text string, width, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if more := len(lines) - height; more > 0 {
		lines = append(lines[:height-1], "… "+strconv.Itoa(more+1)+" more lines")
	}
	for i, line := range lines {
		lines[i] = short(line, width) + toLineEnd
	}
	// A raw terminal needs the carriage return. After the last line comes none: it would
	// scroll a full screen.
	return home + strings.Join(lines, "\r\n") + toScreenEnd
}
