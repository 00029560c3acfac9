package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxBody bounds a request's JSON. The largest ones carry a seccomp profile.
const maxBody = 4 << 20

// A call is one request and its answer.
type call struct {
	w     http.ResponseWriter
	r     *http.Request
	minor int    // API version 1.minor
	name  string // what the path names
	form  url.Values
	begun bool // the answer's status is sent
}

type errorBody struct {
	Message string `json:"message"`
}

func (c *call) ctx() context.Context { return c.r.Context() }

// before says whether the client speaks an API older than 1.minor.
func (c *call) before(minor int) bool { return c.minor < minor }

func (c *call) parseForm() error {
	form, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return invalid("parse query: %v", err)
	}
	c.form = form
	return nil
}

// flag reads a boolean as Docker does: anything but "", 0, no, false and none.
func (c *call) flag(key string, unset bool) bool {
	if !c.form.Has(key) {
		return unset
	}
	switch strings.ToLower(strings.TrimSpace(c.form.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// integer reads an optional number; nil when it is not given.
func (c *call) integer(key string) (*int, error) {
	s := c.form.Get(key)
	if s == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, invalid("invalid value for %q: %q is not a number", key, s)
	}
	return &n, nil
}

// size reads a required terminal dimension.
func (c *call) size(key string) (uint, error) {
	n, err := strconv.ParseUint(c.form.Get(key), 10, 32)
	if err != nil {
		return 0, invalid("invalid resize %s %q", map[string]string{"h": "height", "w": "width"}[key], c.form.Get(key))
	}
	return uint(n), nil
}

// timestamp reads "seconds[.nanoseconds]"; zero when it is not given.
func (c *call) timestamp(key string) (time.Time, error) {
	s := c.form.Get(key)
	if s == "" || s == "0" && key == "until" {
		return time.Time{}, nil
	}
	t, err := parseTimestamp(s)
	if err != nil {
		return time.Time{}, invalid("invalid value for %q: %v", key, err)
	}
	return t, nil
}

func parseTimestamp(s string) (time.Time, error) {
	sec, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a Unix timestamp", s)
	}
	frac = (frac + "000000000")[:9]
	ns, err := strconv.ParseUint(frac, 10, 32)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is not a Unix timestamp", s)
	}
	return time.Unix(n, int64(ns)), nil
}

// decode reads the request's JSON into v; an absent body leaves v as it is.
func (c *call) decode(v any) error {
	body, err := c.body()
	if err != nil || len(body) == 0 {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return invalid("invalid JSON: got EOF while reading request body")
		}
		return invalid("invalid JSON: %v", err)
	}
	if dec.More() {
		return invalid("unexpected content after JSON")
	}
	return nil
}

// body reads a JSON body, bounded.
func (c *call) body() ([]byte, error) {
	ct := c.r.Header.Get("Content-Type")
	if ct == "" && c.r.ContentLength == 0 {
		return nil, nil
	}
	if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
		return nil, invalid("unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	return body, nil
}

// json answers with a JSON document.
func (c *call) json(status int, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.begin("application/json", status)
	_, err := c.w.Write(buf.Bytes())
	return err
}

func (c *call) noContent() error {
	c.begin("", http.StatusNoContent)
	return nil
}

// begin sends the status and headers.
func (c *call) begin(contentType string, status int) {
	if contentType != "" {
		c.w.Header().Set("Content-Type", contentType)
	}
	c.begun = true
	c.w.WriteHeader(status)
}

// flush sends what was written so far.
func (c *call) flush() { _ = http.NewResponseController(c.w).Flush() }

// A lines writes JSON documents one by one, each sent at once.
type lines struct {
	c   *call
	enc *json.Encoder
}

func (c *call) lines(contentType string) *lines {
	c.begin(contentType, http.StatusOK)
	c.flush()
	enc := json.NewEncoder(c.w)
	enc.SetEscapeHTML(false)
	return &lines{c, enc}
}

func (l *lines) write(v any) error {
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	l.c.flush()
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

// statusOf is the HTTP status of an error, by its kind.
func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err):
		return http.StatusConflict
	case errdefs.IsNotModified(err):
		return http.StatusNotModified
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
