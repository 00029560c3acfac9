package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func collect(t *testing.T, dir string, l *Log, o ReadOptions) []string {
	t.Helper()
	var got []string
	for r, err := range Read(t.Context(), dir, l, o) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Stream.String()+":"+string(r.Line))
	}
	return got
}

var all = ReadOptions{Tail: -1, Stdout: true, Stderr: true}

func mustOpen(t *testing.T, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l *Log, s Stream, text string) uint64 {
	t.Helper()
	off, err := l.Write(s, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return off
}

func TestLinesAndPartials(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	if off := write(t, l, Stdout, "one\ntw"); off != 4 {
		t.Errorf("safe up to %d, want 4: the half line is held", off)
	}
	write(t, l, Stderr, "err\n")
	if off := write(t, l, Stdout, "o\n"); off != 8 {
		t.Errorf("safe up to %d, want 8", off)
	}
	long := strings.Repeat("x", maxLine+5)
	write(t, l, Stdout, long)
	if off, err := l.Flush(Stdout); err != nil || off != 8+uint64(len(long)) {
		t.Errorf("flush: %d, %v", off, err)
	}
	want := []string{"stdout:one\n", "stderr:err\n", "stdout:two\n", "stdout:" + long[:maxLine], "stdout:xxxxx"}
	if diff := cmp.Diff(want, collect(t, dir, l, all)); diff != "" {
		t.Error(diff)
	}
}

// A crash between the write of a record and its mark: the record is cut and
// the guest sends it again.
func TestReopenCutsWhatIsNotMarked(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	write(t, l, Stdout, "safe\nhalf")
	l.Close()
	f, err := os.OpenFile(Path(dir), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"log":"not marked\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n" + `{"log":"to`)
	f.Close()

	l = mustOpen(t, dir, Options{})
	if off := l.Offset(Stdout); off != 5 {
		t.Fatalf("consumed %d, want 5", off)
	}
	write(t, l, Stdout, "half line\n")
	if diff := cmp.Diff([]string{"stdout:safe\n", "stdout:half line\n"}, collect(t, dir, l, all)); diff != "" {
		t.Error(diff)
	}
}

func TestTornMarkLeavesTheOther(t *testing.T) {
	dir := t.TempDir()
	m, err := openMark(dir + "/m")
	if err != nil {
		t.Fatal(err)
	}
	m.set(position{size: 1, off: [2]uint64{1, 1}})
	m.set(position{size: 2, off: [2]uint64{2, 2}})
	m.mem[int(m.seq%2)*slotWords*8+8]++ // the newest slot's size, without its sum
	m.close()
	m, err = openMark(dir + "/m")
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if m.get().size != 1 {
		t.Errorf("got %+v, want the older mark", m.get())
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{MaxBytes: 300, MaxFiles: 3})
	var want []string
	for i := range 20 {
		write(t, l, Stdout, fmt.Sprintf("line %d\n", i))
	}
	for i := 20 - len(collect(t, dir, l, all)); i < 20; i++ {
		want = append(want, fmt.Sprintf("stdout:line %d\n", i))
	}
	if len(want) < 7 {
		t.Fatalf("only %d lines kept in three files", len(want))
	}
	if diff := cmp.Diff(want, collect(t, dir, l, all)); diff != "" {
		t.Error(diff)
	}
	o := all
	o.Tail = 5
	if diff := cmp.Diff(want[len(want)-5:], collect(t, dir, l, o)); diff != "" {
		t.Error(diff)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 4 { // three files and the mark
		t.Errorf("%d files in %s, want 4", len(entries), dir)
	}
}

func TestTailSinceUntilStreams(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	for i := range 5000 {
		write(t, l, Stream(i%2), fmt.Sprintf("%d\n", i))
	}
	tests := []struct {
		name  string
		o     ReadOptions
		first string
		n     int
	}{
		{"tail", ReadOptions{Tail: 3, Stdout: true, Stderr: true}, "stderr:4997\n", 3},
		{"tail of one stream", ReadOptions{Tail: 3, Stdout: true}, "stdout:4994\n", 3},
		{"tail zero", ReadOptions{Tail: 0, Stdout: true}, "", 0},
		{"tail more than there is", ReadOptions{Tail: 10000, Stdout: true, Stderr: true}, "stdout:0\n", 5000},
		{"since the future", ReadOptions{Tail: -1, Stdout: true, Since: time.Now().Add(time.Hour)}, "", 0},
		{"until the past", ReadOptions{Tail: -1, Stdout: true, Until: time.Now().Add(-time.Hour)}, "", 0},
		{"nothing", ReadOptions{Tail: -1}, "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := collect(t, dir, l, tt.o)
			if len(got) != tt.n || (tt.n > 0 && got[0] != tt.first) {
				t.Errorf("%d records, first %q; want %d, %q", len(got), append(got, "")[0], tt.n, tt.first)
			}
		})
	}
}

func TestFollowAcrossRotation(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{MaxBytes: 2000, MaxFiles: 50})
	done := make(chan struct{})
	go func() {
		for i := range 500 {
			l.Write(Stdout, fmt.Appendf(nil, "%d\n", i))
		}
		close(done)
	}()
	o := all
	o.Follow, o.Done = true, done
	got := collect(t, dir, l, o)
	// A follower that falls behind by more than a file misses whole files, as
	// with Docker; here it starts with the first line and ends with the last.
	if len(got) == 0 || got[len(got)-1] != "stdout:499\n" {
		t.Fatalf("%d records, last %q", len(got), append([]string{""}, got...)[len(got)])
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	write(t, l, Stdout, "x\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := all
	o.Follow = true
	n := 0
	for range Read(ctx, dir, l, o) {
		n++
		cancel()
	}
	if n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

func TestDiscardCounts(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{Discard: true})
	if off := write(t, l, Stdout, "half"); off != 4 {
		t.Errorf("consumed %d, want 4", off)
	}
	l.Close()
	l = mustOpen(t, dir, Options{Discard: true})
	if off := l.Offset(Stdout); off != 4 {
		t.Errorf("after reopening %d, want 4", off)
	}
	l.Rewind()
	if off := l.Offset(Stdout); off != 0 {
		t.Errorf("after rewinding %d, want 0", off)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte("plain\n"))
	f.Add([]byte("\x00\xff\"\\\u2028\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		data := appendRecord(nil, Stderr, line, time.Unix(0, 0))
		if bytes.Count(data, []byte("\n")) != 1 || !json.Valid(data) {
			t.Fatalf("not one line of JSON: %q", data)
		}
		r, err := decode(data)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ToValidUTF8(string(line), ""); strings.ReplaceAll(string(r.Line), "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
			t.Errorf("%q came back as %q", line, r.Line)
		}
	})
}

// A full disk loses records, but what follows still has the stream's offsets:
// the guest has forgotten what was not written.
func TestFullDiskCountsOn(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	write(t, l, Stdout, "one\n")
	file := l.f
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	l.f = full
	if off, err := l.Write(Stdout, []byte("lost\nhalf")); err == nil || off != 9 {
		t.Errorf("safe up to %d, %v; want 9 and an error", off, err)
	}
	l.f = file
	if off := write(t, l, Stdout, "\ntwo\n"); off != 18 {
		t.Errorf("safe up to %d, want 18", off)
	}
	if diff := cmp.Diff([]string{"stdout:one\n", "stdout:half\n", "stdout:two\n"}, collect(t, dir, l, all)); diff != "" {
		t.Error(diff)
	}
}

// A crash after a rotation, before the mark of what was written then.
func TestReopenAfterCutRotation(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{})
	write(t, l, Stdout, "one\n")
	if err := l.rotateLocked(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.f.Write(appendRecord(nil, Stdout, []byte("much longer than one\n"), time.Now())); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = mustOpen(t, dir, Options{})
	write(t, l, Stdout, "again\n")
	if diff := cmp.Diff([]string{"stdout:again\n"}, collect(t, dir, l, all)); diff != "" {
		t.Error(diff)
	}
}

// Who follows a log that keeps one file is not told that it is gone while it
// is rotated.
func TestFollowWhileRotating(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, Options{MaxBytes: 200})
	write(t, l, Stdout, "start\n")
	done := make(chan struct{})
	ended := make(chan struct{})
	o := all
	o.Follow, o.Done = true, done
	go func() {
		defer close(ended)
		for range Read(t.Context(), dir, l, o) {
		}
	}()
	for range 20000 {
		write(t, l, Stdout, strings.Repeat("x", 90)+"\n")
	}
	select {
	case <-ended:
		t.Error("ended while the log went on")
	default:
	}
	close(done)
	<-ended
}
