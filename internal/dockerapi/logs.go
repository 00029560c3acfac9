package dockerapi

import (
	"bufio"
	"io"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"

	"github.com/hyper-run/hyper/internal/logs"
)

// timeFixed is RFC 3339 with all nine digits, so that lines stay aligned.
const timeFixed = "2006-01-02T15:04:05.000000000Z07:00"

func (a *api) logs(c *call) error {
	o := logs.ReadOptions{Stdout: c.flag("stdout", false), Stderr: c.flag("stderr", false), Follow: c.flag("follow", false), Tail: -1}
	if !o.Stdout && !o.Stderr {
		return invalid("you must choose at least one stream: must specify at least one of 'stdout' or 'stderr'")
	}
	var err error
	if o.Since, err = c.timestamp("since"); err != nil {
		return err
	}
	if o.Until, err = c.timestamp("until"); err != nil {
		return err
	}
	if n, err := strconv.Atoi(c.form.Get("tail")); err == nil && n >= 0 {
		o.Tail = n // anything else, as "all", is all
	}
	if c.form.Get("format") != "" {
		return errdefs.ErrNotImplemented.WithMessage("log format " + c.form.Get("format") + " is not supported yet")
	}
	records, tty, err := a.Containers.Logs(c.ctx(), c.name, o)
	if err != nil {
		return err
	}
	contentType := types.MediaTypeRawStream
	if !tty && !c.before(42) {
		contentType = types.MediaTypeMultiplexedStream
	}
	c.begin(contentType, http.StatusOK)
	c.flush()
	out := bufio.NewWriterSize(c.w, 64<<10)
	w := logWriter{out: out, mux: !tty, timestamps: c.flag("timestamps", false), details: c.flag("details", false)}
	for rec, err := range records {
		if err == nil {
			err = w.write(rec)
		} else if !tty && c.ctx().Err() == nil {
			_, _ = writeFrame(out, stdcopy.Systemerr, []byte(err.Error()))
			return out.Flush()
		}
		if err != nil {
			return err
		}
		if o.Follow {
			if err := out.Flush(); err != nil {
				return err
			}
			c.flush()
		}
	}
	return out.Flush()
}

type logWriter struct {
	out                      io.Writer
	mux, timestamps, details bool
	line                     []byte // scratch
}

func (w *logWriter) write(r logs.Record) error {
	w.line = w.line[:0]
	if w.timestamps {
		w.line = append(r.Time.UTC().AppendFormat(w.line, timeFixed), ' ')
	}
	if w.details {
		w.line = append(w.line, ' ') // of which json-file has none
	}
	w.line = append(w.line, r.Line...)
	if !w.mux {
		_, err := w.out.Write(w.line)
		return err
	}
	stream := stdcopy.Stdout
	if r.Stream == logs.Stderr {
		stream = stdcopy.Stderr
	}
	_, err := writeFrame(w.out, stream, w.line)
	return err
}
