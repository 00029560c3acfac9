// Package client talks to hyperd. What hyperd serves is Docker's Engine API,
// so the methods are those of github.com/moby/moby/client; this package says
// where hyperd listens, which API version it is spoken to in, and carries the
// streams of attach and exec.
//
// It never reads DOCKER_HOST, nor any other setting of Docker.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs/pkg/errhttp"
	moby "github.com/moby/moby/client"
)

// DefaultHost is where hyperd listens when it is not told otherwise.
const DefaultHost = "unix:///run/hyper/hyper.sock"

// APIVersion is the version every request is made in. It is fixed: negotiating
// would cost each command a round trip, and hyper comes with its hyperd.
const APIVersion = moby.MaxAPIVersion

// streamBuffer was not worse than up to 256 KiB for a gigabyte of output, and
// is what most sessions never fill.
const streamBuffer = 64 << 10

// Options are optional; the zero value connects to DefaultHost.
type Options struct {
	Host      string // unix://PATH or tcp://HOST:PORT
	UserAgent string
	// Dial replaces how connections are made. It is given the network and
	// address that Host names.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Client makes requests to one hyperd. It is safe for concurrent use and
// connects when it is first used.
type Client struct {
	*moby.Client
}

// New returns a client; it does not connect.
func New(o Options) (*Client, error) {
	if o.Host == "" {
		o.Host = DefaultHost
	}
	u, err := moby.ParseHostURL(o.Host)
	if err != nil || u.Scheme != "unix" && u.Scheme != "tcp" {
		return nil, fmt.Errorf("host %q: must be unix://PATH or tcp://HOST:PORT", o.Host)
	}
	opts := []moby.Opt{
		moby.WithHost(o.Host),
		moby.WithAPIVersion(APIVersion),
		// Also saves reading the build information of the executable.
		moby.WithUserAgent(o.UserAgent),
	}
	if o.Dial != nil {
		opts = append(opts, moby.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
			return o.Dial(ctx, u.Scheme, u.Host)
		}))
	}
	c, err := moby.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", o.Host, err)
	}
	return &Client{c}, nil
}

// A Stream carries the standard streams of a process. Read is buffered; the
// connection half-closes.
type Stream struct {
	net.Conn
	r *bufio.Reader
}

// Reader is what Read reads from.
func (s *Stream) Reader() *bufio.Reader { return s.r }

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite tells the process that its standard input has ended.
func (s *Stream) CloseWrite() error {
	if c, ok := s.Conn.(moby.CloseWriter); ok {
		return c.CloseWrite()
	}
	return nil
}

// Attach attaches to a container's streams. Once it has returned, what the
// container writes reaches the stream.
func (c *Client) Attach(ctx context.Context, container string, o moby.ContainerAttachOptions) (*Stream, error) {
	q := url.Values{}
	for name, on := range map[string]bool{"stream": o.Stream, "stdin": o.Stdin, "stdout": o.Stdout, "stderr": o.Stderr, "logs": o.Logs} {
		if on {
			q.Set(name, "1")
		}
	}
	if o.DetachKeys != "" {
		q.Set("detachKeys", o.DetachKeys)
	}
	return c.hijack(ctx, "/containers/"+container+"/attach", q, nil)
}

// execStart is the body of an exec's start (container.ExecStartRequest, which
// would send nulls).
type execStart struct {
	Tty         bool
	ConsoleSize *[2]uint `json:",omitempty"`
}

// ExecAttach starts an exec and attaches to its streams.
func (c *Client) ExecAttach(ctx context.Context, exec string, o moby.ExecAttachOptions) (*Stream, error) {
	body := execStart{Tty: o.TTY}
	if o.ConsoleSize.Height != 0 || o.ConsoleSize.Width != 0 {
		body.ConsoleSize = &[2]uint{o.ConsoleSize.Height, o.ConsoleSize.Width}
	}
	return c.hijack(ctx, "/exec/"+exec+"/start", nil, body)
}

// hijack posts a request and turns its connection into a stream. Unlike the
// one of moby's client it passes on why the daemon refused.
func (c *Client) hijack(ctx context.Context, path string, q url.Values, body any) (*Stream, error) {
	req, err := hijackRequest(ctx, path, q, body)
	if err != nil {
		return nil, err
	}
	conn, err := c.Dialer()(ctx)
	if err != nil {
		return nil, err
	}
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("send request: %w", err)
	}
	r := bufio.NewReaderSize(conn, streamBuffer)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read response: %w", err)
	}
	// Old daemons answer 200 and hijack all the same.
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		defer conn.Close()
		return nil, responseError(resp)
	}
	return &Stream{Conn: conn, r: r}, nil
}

func hijackRequest(ctx context.Context, path string, q url.Values, body any) (*http.Request, error) {
	var b io.Reader = http.NoBody
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		b = bytes.NewReader(data)
	}
	u := url.URL{Scheme: "http", Host: moby.DummyHost, Path: "/v" + APIVersion + path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), b)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	return req, nil
}

// responseError is the error that a response of the API stands for, with its
// errdefs kind.
func responseError(resp *http.Response) error {
	const most = 1 << 20
	data, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return fmt.Errorf("read the error of the daemon: %w", err)
	}
	var m struct{ Message string }
	if json.Unmarshal(data, &m) != nil || m.Message == "" {
		m.Message = string(bytes.TrimSpace(data))
	}
	if m.Message == "" {
		m.Message = resp.Status
	}
	return &Error{Message: m.Message, kind: errhttp.ToNative(resp.StatusCode)}
}

// An Error is a refusal of the daemon.
type Error struct {
	Message string
	kind    error
}

func (e *Error) Error() string { return e.Message }

// Is makes the kinds of containerd/errdefs work.
func (e *Error) Is(target error) bool { return e.kind != nil && errors.Is(e.kind, target) }
