package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

// A Record is one line of a log, or a piece of one of at most 16 KiB.
type Record struct {
	Time   time.Time
	Stream Stream
	Line   []byte // with its newline, if it had one
}

// ReadOptions select records. The zero value selects none: set Tail to -1 for all.
type ReadOptions struct {
	Since, Until   time.Time // zero: unbounded
	Tail           int       // the last n, -1: all
	Stdout, Stderr bool
	Follow         bool            // go on with what is appended
	Done           <-chan struct{} // closed when nothing will be appended any more; nil: never
}

// maxRecord bounds an encoded record: every byte of a line may take six.
const maxRecord = 6*maxLine + 256

// Read yields the records of the log in dir, oldest first. l is the open Log
// of that directory, needed only to follow; it may be nil.
func Read(ctx context.Context, dir string, l *Log, o ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		r := reading{dir: dir, log: l, o: o, yield: yield, limit: -1}
		if err := r.run(ctx); err != nil && !errors.Is(err, errStop) {
			yield(Record{}, err)
		}
	}
}

// A Frozen is a log as it was at one moment, whatever is appended or rotated
// since. Close it.
type Frozen struct {
	files   []*os.File // oldest first
	size    int64      // of the last file, -1: all of it
	pending [2][]byte
}

// Freeze takes the log in dir as it is now. l is the open Log of that
// directory, nil when nobody writes it.
func Freeze(dir string, l *Log) (*Frozen, error) {
	f := &Frozen{size: -1}
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		f.size = l.mark.get().size
		for s, p := range l.pending {
			f.pending[s] = bytes.Clone(p)
		}
	}
	var err error
	if f.files, err = openFiles(dir); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Records yields what was logged, oldest first; once.
func (f *Frozen) Records(ctx context.Context, o ReadOptions) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		r := reading{o: o, yield: yield}
		for i, file := range f.files {
			if i == len(f.files)-1 {
				r.limit = f.size
			} else {
				r.limit = -1
			}
			if err := r.readFile(ctx, file, nil); err != nil {
				if !errors.Is(err, errStop) {
					yield(Record{}, err)
				}
				return
			}
		}
	}
}

// Pending is the start of a line of the stream whose end had not come.
func (f *Frozen) Pending(s Stream) []byte { return f.pending[s] }

// Close closes the files.
func (f *Frozen) Close() {
	for _, file := range f.files {
		file.Close()
	}
}

var errStop = errors.New("stop")

// A reading is one pass over a log.
type reading struct {
	dir   string
	log   *Log
	o     ReadOptions
	yield func(Record, error) bool
	limit int64 // of how much of a file is read, -1: all
}

func (r *reading) run(ctx context.Context) error {
	o := r.o
	files, err := openFiles(r.dir)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil || (len(files) == 0 && !o.Follow) {
		return err
	}
	if o.Tail >= 0 {
		if files, err = seekTail(files, o); err != nil {
			return err
		}
	}
	for len(files) > 1 {
		if err := r.readFile(ctx, files[0], nil); err != nil {
			return err
		}
		files[0].Close()
		files = files[1:]
	}
	if !o.Follow || r.log == nil {
		if len(files) == 0 {
			return nil
		}
		return r.readFile(ctx, files[0], nil)
	}
	return r.follow(ctx, files)
}

// follow reads the current file as it grows and changes over to the next when
// it was rotated.
func (r *reading) follow(ctx context.Context, files []*os.File) error {
	var f *os.File
	if len(files) > 0 {
		f = files[0]
	}
	var opened *os.File // what this function opened
	defer func() {
		if opened != nil {
			opened.Close()
		}
	}()
	for {
		if f != nil {
			if err := r.readFile(ctx, f, r.log); err != nil {
				return err
			}
		} else if err := waitGrown(ctx, r.log.wait(), r.o); err != nil {
			return err
		}
		next, err := r.log.current()
		if errors.Is(err, os.ErrNotExist) {
			return nil // removed
		}
		if err != nil {
			return err
		}
		if opened != nil {
			opened.Close()
		}
		f, opened = next, next
	}
}

func waitGrown(ctx context.Context, grown <-chan struct{}, o ReadOptions) error {
	var until <-chan time.Time
	if !o.Until.IsZero() {
		t := time.NewTimer(time.Until(o.Until))
		defer t.Stop()
		until = t.C
	}
	select {
	case <-grown:
		return nil
	case <-ctx.Done():
		return errStop
	case <-until:
		return errStop
	case <-o.Done:
		return errStop
	}
}

// readFile yields the records from f's position on. With l it waits for more
// at the end, and returns nil once the file was rotated away.
func (r *reading) readFile(ctx context.Context, f *os.File, l *Log) error {
	o := r.o
	var src io.Reader = f
	if r.limit >= 0 {
		src = io.LimitReader(f, r.limit)
	}
	br := bufio.NewReaderSize(src, 64<<10)
	var part []byte
	for {
		var grown <-chan struct{}
		var done bool
		if l != nil {
			// Both are looked at before reading, so that what is appended in
			// between is either read now or wakes the wait.
			grown, done = l.wait(), isClosed(o.Done)
		}
		line, err := br.ReadSlice('\n')
		part = append(part, line...)
		switch {
		case len(part) > maxRecord:
			return fmt.Errorf("read log %s: record of more than %d bytes", f.Name(), maxRecord)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && (l == nil || rotatedAway(f)):
			return nil // a torn last record is not one yet
		case errors.Is(err, io.EOF) && done:
			return errStop
		case errors.Is(err, io.EOF):
			if err := waitGrown(ctx, grown, o); err != nil && !isClosed(o.Done) {
				return err
			}
			continue
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		}
		if err := r.emit(ctx, part); err != nil {
			return err
		}
		part = part[:0]
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (r *reading) emit(ctx context.Context, data []byte) error {
	o := r.o
	rec, err := decode(data)
	if err != nil {
		return err
	}
	if !o.Until.IsZero() && rec.Time.After(o.Until) {
		return errStop
	}
	if !o.wants(rec) || rec.Time.Before(o.Since) {
		return nil
	}
	if ctx.Err() != nil || !r.yield(rec, nil) {
		return errStop
	}
	return nil
}

func (o ReadOptions) wants(r Record) bool {
	return (r.Stream == Stdout && o.Stdout) || (r.Stream == Stderr && o.Stderr)
}

func decode(data []byte) (Record, error) {
	var j struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return Record{}, fmt.Errorf("decode log record: %w", err)
	}
	r := Record{Time: j.Time, Line: []byte(j.Log)}
	if j.Stream == Stderr.String() {
		r.Stream = Stderr
	}
	return r, nil
}

func rotatedAway(f *os.File) bool {
	mine, err := f.Stat()
	if err != nil {
		return true
	}
	cur, err := os.Stat(f.Name())
	return err != nil || !os.SameFile(mine, cur)
}

// openFiles opens the files of the log, oldest first.
func openFiles(dir string) ([]*os.File, error) {
	name := Path(dir)
	names := []string{name}
	for i := 1; ; i++ {
		if _, err := os.Stat(rotated(name, i)); err != nil {
			break
		}
		names = append([]string{rotated(name, i)}, names...)
	}
	var files []*os.File
	for _, n := range names {
		f, err := os.Open(n)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// seekTail positions the files at the last o.Tail records that o wants and
// drops files that lie wholly before them.
func seekTail(files []*os.File, o ReadOptions) ([]*os.File, error) {
	left := o.Tail
	for i := len(files) - 1; i >= 0; i-- {
		pos, found, err := tailOffset(files[i], left, o)
		if err != nil {
			return nil, err
		}
		left -= found
		if left > 0 && i > 0 {
			continue
		}
		if _, err := files[i].Seek(pos, io.SeekStart); err != nil {
			return nil, err
		}
		for _, f := range files[:i] {
			f.Close()
		}
		return files[i:], nil
	}
	return files, nil
}

// tailOffset finds where the last n wanted records of f start, reading
// backwards, and how many there were.
func tailOffset(f *os.File, n int, o ReadOptions) (pos int64, found int, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	const block = 64 << 10
	pos = st.Size()
	if n == 0 {
		return pos, 0, nil
	}
	both := o.Stdout && o.Stderr
	var tail []byte // from at on, not yet split into records
	for at := pos; at > 0; {
		step := min(int64(block), at)
		at -= step
		chunk := make([]byte, step, step+int64(len(tail)))
		if _, err := f.ReadAt(chunk, at); err != nil {
			return 0, 0, err
		}
		tail = append(chunk, tail...)
		if len(tail) > block+maxRecord {
			return 0, 0, fmt.Errorf("read log %s: record of more than %d bytes", f.Name(), maxRecord)
		}
		for {
			end := bytes.LastIndexByte(tail, '\n')
			if end < 0 {
				break
			}
			start := bytes.LastIndexByte(tail[:end], '\n') + 1
			if start == 0 && at > 0 {
				break // the record's start is in the block before
			}
			if both || wantsRaw(tail[start:end+1], o) {
				found++
				pos = at + int64(start)
			}
			tail = tail[:start]
			if found == n {
				return pos, found, nil
			}
		}
	}
	return 0, found, nil
}

func wantsRaw(line []byte, o ReadOptions) bool {
	r, err := decode(line)
	return err == nil && o.wants(r)
}
