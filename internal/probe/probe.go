// Package probe looks whether what runs in a container is well: once, as a
// [Handler], or again and again, as a [Prober] does with a container's probes.
//
// All it does to a container goes through a [Target]. It believes nothing that
// comes back: time, headers, bodies, output and redirects are bounded. What follows
// from a check, a container that is killed or gets no more requests, is its caller's business.
//
// A Prober owns one goroutine, and one more for each check under way; a
// container without probes costs none.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// UserAgent is how checks over HTTP and gRPC introduce themselves.
const UserAgent = "hyper-probe/1"

// MaxOutput bounds what is kept of what a check says: its last bytes.
const MaxOutput = 4 << 10

// A Target is a running container. Its methods may be called concurrently,
// and return soon after ctx has ended. An error that wraps errdefs.ErrUnavailable
// says that the container could not be reached, and so nothing about it.
type Target interface {
	// Exec runs a program in the container, as the container's user, and returns
	// when it has ended; when ctx ends first, it ends the program. Of what
	// it prints, no more than the last MaxOutput bytes are needed (see Tail).
	Exec(ctx context.Context, args []string) (code int, output []byte, err error)
	// Dial connects to "host:port" over TCP, from within the pod.
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// An Outcome is how a check went.
type Outcome string

// Outcomes.
const (
	Success Outcome = "success"
	Failure Outcome = "failure"
	Unknown Outcome = "unknown" // it could not be made, and does not count
)

// A Result is what came of one check.
type Result struct {
	Outcome Outcome
	Message string // what a program printed, or why it is not Success: UTF-8, at most MaxOutput bytes
}

// Run does it once. When ctx ends first because of its deadline, that is a
// failure; when it is cancelled, the outcome is Unknown.
func (h Handler) Run(ctx context.Context, t Target) Result {
	message, err := h.run(ctx, t)
	if err == nil {
		err = ctx.Err() // it was too late
	}
	switch {
	case err == nil:
		return Result{Success, text(message)}
	case errors.Is(ctx.Err(), context.Canceled), errors.Is(err, errdefs.ErrUnavailable):
		return Result{Unknown, text(err.Error())}
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		return Result{Failure, text("timed out: " + err.Error())}
	}
	return Result{Failure, text(err.Error())}
}

// run returns what is to be told of a success, or why there is none.
func (h Handler) run(ctx context.Context, t Target) (string, error) {
	switch {
	case len(h.Exec) > 0:
		return h.exec(ctx, t)
	case h.HTTP != nil:
		return h.HTTP.get(ctx, t)
	case h.TCP != nil:
		return "", h.TCP.connect(ctx, t)
	case h.GRPC != nil:
		return "", h.GRPC.check(ctx, t)
	case h.Sleep > 0:
		timer := time.NewTimer(h.Sleep)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("sleep %v: %w", h.Sleep, ctx.Err())
		case <-timer.C:
		}
	}
	return "", nil
}

func (h Handler) exec(ctx context.Context, t Target) (string, error) {
	code, output, err := t.Exec(ctx, h.Exec)
	said := strings.TrimSpace(string(output[max(0, len(output)-MaxOutput):]))
	switch {
	case err != nil:
		return "", fmt.Errorf("run %s: %w", h.Exec[0], err)
	case code != 0 && said == "":
		return "", fmt.Errorf("%s exited with code %d", h.Exec[0], code)
	case code != 0:
		return "", fmt.Errorf("%s exited with code %d: %s", h.Exec[0], code, said)
	}
	return said, nil
}

func (c *TCPSocket) connect(ctx context.Context, t Target) error {
	conn, err := t.Dial(ctx, address(c.Host, c.Port))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address(c.Host, c.Port), err)
	}
	return conn.Close()
}

// address is that of a port; no host is the pod itself.
func address(host string, port int) string {
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// text makes what came from a guest fit to be kept and put into JSON. The
// beginning says what was done, the end why it went wrong: the middle goes.
func text(s string) string {
	const head, gap = 256, "…"
	s = strings.ToValidUTF8(s, "?")
	if len(s) > MaxOutput {
		s = s[:head] + gap + s[len(s)-(MaxOutput-head-2*len(gap)):]
		s = strings.ToValidUTF8(s, "") // a rune cut in two
	}
	return s
}

// A Tail keeps the last MaxOutput bytes written to it. Not for concurrent use.
type Tail struct {
	buf []byte
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	n := len(p)
	p = p[max(0, n-MaxOutput):]
	t.buf = append(t.buf[max(0, len(t.buf)+len(p)-MaxOutput):], p...)
	return n, nil
}

// Bytes is what was kept; valid until the next Write.
func (t *Tail) Bytes() []byte { return t.buf }
