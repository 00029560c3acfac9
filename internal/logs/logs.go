// Package logs keeps what containers print: Docker's json-file format, with
// rotation, written so that a crash of hyperd neither loses nor doubles a
// byte, and read back with tail, since, until and follow.
//
// Exactness: beside the log lies a small mapped file with the log's length
// and how far each stream was consumed (see mark.go). The guest is told to
// forget output only after that file says it is in the log; on reopening,
// what the log has beyond the recorded length is cut off and comes again
// from the guest.
//
// A Log has no goroutines. Its lock is never held while a reader's caller runs.
package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// A Stream is one of a container's two outputs.
type Stream int

// The streams.
const (
	Stdout Stream = iota
	Stderr
)

func (s Stream) String() string { return [...]string{"stdout", "stderr"}[s] }

// maxLine is where a line without an end is cut, as Docker does: 16 KiB.
const maxLine = 16 << 10

const (
	fileName = "json.log"
	markName = "mark"
)

// Options say how a log is kept.
type Options struct {
	Discard  bool  // keep no log, only how far the streams were consumed
	MaxBytes int64 // rotate beyond this size, 0: never
	MaxFiles int   // files kept, with the current one; 0: 1
}

// Path is the current file of the log in dir.
func Path(dir string) string { return filepath.Join(dir, fileName) }

// A Log is the log of one container. Safe for concurrent use.
type Log struct {
	dir  string
	opts Options

	mu      sync.Mutex
	f       *os.File // nil when closed or discarding
	mark    *mark
	pending [2][]byte     // the start of a line whose end has not come yet
	grown   chan struct{} // closed and replaced at every append
	buf     []byte        // scratch of Write
}

// Open opens the log in dir for appending, making both as needed.
func Open(dir string, o Options) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	m, err := openMark(filepath.Join(dir, markName))
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, opts: o, mark: m, grown: make(chan struct{})}
	if o.Discard {
		return l, nil
	}
	if err := l.openFile(); err != nil {
		m.close()
		return nil, err
	}
	return l, nil
}

// openFile opens the current file and cuts what was not marked: it will come
// from the guest again. A file shorter than the mark is a new one, made by a
// rotation whose mark was not written any more: nothing in it is marked.
func (l *Log) openFile() error {
	f, err := os.OpenFile(Path(l.dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	p := l.mark.get()
	if st.Size() < p.size {
		p.size = 0
		l.mark.set(p)
	}
	if st.Size() > p.size {
		err = f.Truncate(p.size)
	}
	if err == nil {
		_, err = f.Seek(p.size, 0)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("recover log %s: %w", f.Name(), err)
	}
	l.f = f
	return nil
}

// Offset is how many bytes of the stream are safe in the log.
func (l *Log) Offset(s Stream) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mark.get().off[s]
}

// Rewind forgets how far the streams were consumed: a new run of the
// container counts from zero. What was logged stays.
func (l *Log) Rewind() {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.mark.get()
	p.off = [2]uint64{}
	l.mark.set(p)
	l.pending = [2][]byte{}
}

// Write appends what came next of the stream and returns how far the stream
// is safe in the log; the rest is held until its line ends. What can't be
// written, the disk being full, is missing in the log but counts as consumed:
// the guest forgets it, so that no later offset may point before it.
func (l *Log) Write(s Stream, p []byte) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.mark.get()
	if l.opts.Discard {
		m.off[s] += uint64(len(p))
		l.mark.set(m)
		return m.off[s], nil
	}
	now := time.Now().UTC()
	l.buf = l.buf[:0]
	logged := uint64(0)
	for len(p) > 0 {
		n := bytes.IndexByte(p, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(p)
		}
		if room := maxLine - len(l.pending[s]); n > room {
			n, whole = room, true
		}
		line := p[:n]
		if len(l.pending[s]) > 0 {
			l.pending[s] = append(l.pending[s], line...)
			line = l.pending[s]
		}
		if whole {
			l.buf = appendRecord(l.buf, s, line, now)
			logged += uint64(len(line))
			l.pending[s] = l.pending[s][:0]
		} else if len(l.pending[s]) == 0 {
			l.pending[s] = append(l.pending[s], line...)
		}
		p = p[n:]
	}
	return l.commitLocked(s, logged)
}

// Flush writes what is held of a stream that has ended.
func (l *Log) Flush(s Stream) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.pending[s])
	if n == 0 {
		return l.mark.get().off[s], nil
	}
	l.buf = appendRecord(l.buf[:0], s, l.pending[s], time.Now().UTC())
	l.pending[s] = l.pending[s][:0]
	return l.commitLocked(s, uint64(n))
}

// commitLocked appends l.buf, which holds logged bytes of the stream.
func (l *Log) commitLocked(s Stream, logged uint64) (uint64, error) {
	m := l.mark.get()
	if len(l.buf) == 0 {
		return m.off[s], nil
	}
	if l.f == nil {
		return m.off[s], fmt.Errorf("write log %s: %w", l.dir, os.ErrClosed)
	}
	if l.opts.MaxBytes > 0 && m.size > 0 && m.size+int64(len(l.buf)) > l.opts.MaxBytes {
		if err := l.rotateLocked(); err != nil {
			m.off[s] += logged
			l.mark.set(m)
			return m.off[s], fmt.Errorf("rotate log: %w", err)
		}
		m.size = 0
	}
	n, err := l.f.Write(l.buf)
	m.off[s] += logged
	if err != nil {
		// A torn record must not stay: the next one would join it.
		terr := l.f.Truncate(m.size)
		_, serr := l.f.Seek(m.size, 0)
		l.mark.set(m)
		return m.off[s], errors.Join(fmt.Errorf("write log: %w", err), terr, serr)
	}
	m.size += int64(n)
	l.mark.set(m)
	close(l.grown)
	l.grown = make(chan struct{})
	return m.off[s], nil
}

func (l *Log) rotateLocked() error {
	keep := max(l.opts.MaxFiles, 1) - 1
	name := Path(l.dir)
	if keep == 0 {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for i := keep; i > 0; i-- {
		from := name
		if i > 1 {
			from = rotated(name, i-1)
		}
		if err := os.Rename(from, rotated(name, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	l.f.Close()
	l.f = f
	// Before anything is in it: on reopening, the old length would cut it.
	p := l.mark.get()
	p.size = 0
	l.mark.set(p)
	return nil
}

func rotated(name string, i int) string { return name + "." + strconv.Itoa(i) }

// Close ends writing. Readers that follow go on until their Done.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mark.close()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// current opens the current file for reading, not while it is rotated.
func (l *Log) current() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return os.Open(Path(l.dir))
}

// wait returns a channel that is closed at the next append.
func (l *Log) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grown
}

// appendRecord encodes one record as Docker's json-file driver does:
// {"log":"text\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}
func appendRecord(b []byte, s Stream, line []byte, t time.Time) []byte {
	b = append(b, `{"log":"`...)
	b = appendJSONText(b, line)
	b = append(b, `","stream":"`...)
	b = append(b, s.String()...)
	b = append(b, `","time":"`...)
	b = t.AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

const hexDigits = "0123456789abcdef"

// appendJSONText appends p as the inside of a JSON string. Bytes that are not
// UTF-8 become U+FFFD, as with Docker.
func appendJSONText(b, p []byte) []byte {
	for i := 0; i < len(p); {
		c := p[i]
		if c < utf8.RuneSelf {
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, '\\', 'n')
			case c == '\r':
				b = append(b, '\\', 'r')
			case c == '\t':
				b = append(b, '\\', 't')
			case c < 0x20 || c == 0x7f:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			default:
				b = append(b, c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(b, `\ufffd`...)
		} else {
			b = append(b, p[i:i+n]...)
		}
		i += n
	}
	return b
}
