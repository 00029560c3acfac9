// Package stdio carries the standard streams of a process between hyper's own
// and a connection to the daemon: raw terminals, detach keys, and the frames
// that keep output and errors apart.
package stdio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/moby/term"

	"github.com/hyper-run/hyper/client"
)

// copyBuffer is as much as a pipe holds.
const copyBuffer = 64 << 10

// ErrDetached is how a session ends that the user left with the detach keys.
var ErrDetached = errors.New("detached")

// A Session is the streams of one process.
type Session struct {
	Conn     *client.Stream
	TTY      bool
	In       io.Reader // nil: not attached
	Out, Err io.Writer // nil: not attached; a tty has only Out
	Keys     []byte    // that detach
}

// DetachKeys reads --detach-keys; the default is Docker's.
func DetachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil // ctrl-p, ctrl-q
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, fmt.Errorf("--detach-keys %s: %w", s, err)
	}
	return keys, nil
}

// Run copies until the daemon ends the connection, the user detaches
// (ErrDetached) or ctx ends (its cause). The daemon ends it after the process's
// output, or when only input is attached, once it has taken all of that. Input
// that is still open does not keep it. It closes the connection.
//
// It owns two goroutines; the one that reads input may be left blocked in a
// read, since nothing can interrupt that.
func (s *Session) Run(ctx context.Context) error {
	defer s.Conn.Close()
	in := s.In
	if in != nil && s.TTY {
		restore, err := makeRaw(in)
		if err != nil {
			return fmt.Errorf("set up the terminal: %w", err)
		}
		defer restore()
		in = term.NewEscapeProxy(in, s.Keys)
	}
	output, input := make(chan error, 1), make(chan error, 1)
	go func() { output <- s.copyOutput() }()
	if in != nil {
		go func() { input <- s.copyInput(in) }()
	}
	for {
		select {
		case err := <-output:
			return err
		case err := <-input:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *Session) copyOutput() error {
	if !s.TTY {
		return Demux(s.Conn.Reader(), s.Out, s.Err)
	}
	out := s.Out
	if out == nil {
		out = io.Discard
	}
	return Copy(out, s.Conn)
}

// copyInput returns nil at the end of input, and when the process takes no
// more: that it ends is seen on its output.
func (s *Session) copyInput(in io.Reader) error {
	err := Copy(s.Conn, in)
	if errors.As(err, new(term.EscapeError)) {
		return ErrDetached
	}
	_ = s.Conn.CloseWrite()
	return nil
}

// Copy is io.Copy by way of one buffer of a size that suits pipes and sockets.
func Copy(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
	return err
}

// The streams of a multiplexed connection (github.com/moby/moby/api/pkg/stdcopy).
const (
	frameHeader = 8
	frameStderr = 2
	frameError  = 3
)

// Demux copies the frames of r to out and err, either of which may be nil. It
// copies nothing in memory: what the buffer of r holds is written from there.
func Demux(r *bufio.Reader, out, err io.Writer) error {
	for {
		h, e := r.Peek(frameHeader)
		if errors.Is(e, io.EOF) && len(h) == 0 {
			return nil
		}
		if e != nil {
			return fmt.Errorf("read output: %w", unexpected(e))
		}
		kind, n := h[0], int(binary.BigEndian.Uint32(h[4:]))
		_, _ = r.Discard(frameHeader) // it is buffered
		w := out
		switch kind {
		case 0, 1:
		case frameStderr:
			w = err
		case frameError:
			msg, e := io.ReadAll(io.LimitReader(r, int64(min(n, copyBuffer))))
			if e != nil {
				return fmt.Errorf("read output: %w", e)
			}
			return fmt.Errorf("error from daemon in stream: %s", msg)
		default:
			return fmt.Errorf("read output: stream %d is not one of a process", kind)
		}
		if e := copyFrame(w, r, n); e != nil {
			return e
		}
	}
}

// maxRecord is longer than any record of a log that a daemon sends in a frame.
const maxRecord = 1 << 20

// Records calls f with each frame of r, which is one record of a log, and
// whether it is of standard error. f must not keep the record.
func Records(r *bufio.Reader, f func(record []byte, isErr bool) error) error {
	var buf bytes.Buffer
	for {
		h, err := r.Peek(frameHeader)
		if errors.Is(err, io.EOF) && len(h) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", unexpected(err))
		}
		kind, n := h[0], binary.BigEndian.Uint32(h[4:])
		if n > maxRecord {
			return fmt.Errorf("read log: a record of %d bytes", n)
		}
		_, _ = r.Discard(frameHeader)
		buf.Reset()
		if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
			return fmt.Errorf("read log: %w", unexpected(err))
		}
		if kind == frameError {
			return fmt.Errorf("error from daemon in stream: %s", &buf)
		}
		if err := f(buf.Bytes(), kind == frameStderr); err != nil {
			return err
		}
	}
}

func copyFrame(w io.Writer, r *bufio.Reader, n int) error {
	for n > 0 {
		if r.Buffered() == 0 {
			if _, err := r.Peek(1); err != nil {
				return fmt.Errorf("read output: %w", unexpected(err))
			}
		}
		part, _ := r.Peek(min(n, r.Buffered()))
		if w != nil {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		_, _ = r.Discard(len(part))
		n -= len(part)
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
