package image

import (
	"io"
	"time"
)

const meterInterval = 100 * time.Millisecond

// A meter reports how far something has come, not more often than is of use. It is for one goroutine.
type meter struct {
	report func(Progress)
	line   Progress
	last   time.Time
}

func newMeter(report func(Progress), line Progress) *meter {
	return &meter{report: report, line: line}
}

func (m *meter) at(n int64) {
	m.line.Current = n
	if now := time.Now(); now.Sub(m.last) >= meterInterval || n == m.line.Total {
		m.last = now
		m.report(m.line)
	}
}

func (m *meter) reader(r io.Reader) io.Reader { return &meteredReader{Reader: r, m: m} }

// body meters a body that may be sought in, as one is that goes on from somewhere.
func (m *meter) body(r io.ReadCloser) io.ReadCloser {
	metered := meteredReader{Reader: r, m: m}
	if seeker, ok := r.(io.Seeker); ok {
		return &meteredSeeker{meteredBody{metered, r}, seeker}
	}
	return &meteredBody{metered, r}
}

type meteredReader struct {
	io.Reader
	m *meter
	n int64
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	r.m.at(r.n)
	return n, err
}

type meteredBody struct {
	meteredReader
	io.Closer
}

type meteredSeeker struct {
	meteredBody
	seeker io.Seeker
}

func (s *meteredSeeker) Seek(offset int64, whence int) (int64, error) {
	n, err := s.seeker.Seek(offset, whence)
	if err == nil {
		s.n = n
	}
	return n, err
}
