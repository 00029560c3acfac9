package guestinit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/guestinit/cgroup"
)

// A memoryWatcher learns when the kernel kills processes of groups for memory
// (cgroup-v2.rst, memory.events). It has one inotify instance for all of them:
// the kernel lets a user have 128, and containers' root is the same user.
type memoryWatcher struct {
	inotify *os.File
	fd      int // of it

	mu     sync.Mutex
	groups map[int32]*memoryWatch
}

// A memoryWatch watches one group.
type memoryWatch struct {
	group  *cgroup.Group
	wd     int    // -1: none
	killed func() // nil until start
	seen   uint64
}

func newMemoryWatcher() (*memoryWatcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	w := &memoryWatcher{inotify: os.NewFile(uintptr(fd), "inotify"), fd: fd, groups: map[int32]*memoryWatch{}}
	go w.run()
	return w, nil
}

// add watches a group.
func (w *memoryWatcher) add(g *cgroup.Group) (*memoryWatch, error) {
	m := &memoryWatch{group: g, wd: -1}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := unix.InotifyAddWatch(w.fd, filepath.Join(g.Dir(), "memory.events"), unix.IN_MODIFY)
	switch {
	case err == nil:
		m.wd = wd
		w.groups[int32(wd)] = m
	case errors.Is(err, unix.ENOENT): // a kernel without the controller
	case errors.Is(err, unix.ENOSPC): // containers took all there are; nobody is told then
	default:
		return nil, fmt.Errorf("watch memory: %w", err)
	}
	return m, nil
}

// remove ends a watch: the kernel does not when the group goes, and would keep it.
func (w *memoryWatcher) remove(m *memoryWatch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.wd >= 0 {
		unix.InotifyRmWatch(w.fd, uint32(m.wd))
		delete(w.groups, int32(m.wd))
	}
}

// start has killed called for every process that is killed from now on.
func (w *memoryWatcher) start(m *memoryWatch, killed func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.killed = killed
}

func (w *memoryWatcher) run() {
	buf := make([]byte, 64*unix.SizeofInotifyEvent) // names come with directories only
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			w.changed(int32(binary.NativeEndian.Uint32(b)))
			b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
		}
	}
}

func (w *memoryWatcher) changed(wd int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.groups[wd]
	if m == nil || m.killed == nil {
		return
	}
	for n := m.kills(); m.seen < n; m.seen++ {
		m.killed()
	}
}

// kills is how many processes of the group were killed for memory so far.
func (m *memoryWatch) kills() uint64 { return m.group.Keyed("memory.events")["oom_kill"] }

// Bounds of what is read of the kernel's log, and of a text about it.
const (
	maxRecords = 4096
	maxRecord  = 8 << 10
	maxVictims = 4
)

// oomDetail says in words what was killed for memory in the container lately,
// and what its memory is.
func (c *container) oomDetail() string {
	var b strings.Builder
	path := "/" + podGroup + "/" + filepath.Base(c.group.Dir())
	victims := findVictims(kernelLog(), path)
	for _, v := range victims {
		b.WriteString(v.String() + "\n")
	}
	stat := c.group.Keyed("memory.stat")
	if n := len(victims); n > 0 && victims[n-1].stat != nil {
		stat = victims[n-1].stat // as it was then
	}
	limit := "none"
	if n := c.group.Uint("memory.max"); n != 0 {
		limit = fmt.Sprintf("%d KiB", n>>10)
	}
	fmt.Fprintf(&b, "memory limit %s, at most %d KiB were used\n", limit, c.group.Uint("memory.peak")>>10)
	for i, key := range []string{"anon", "file", "kernel", "shmem"} {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %d KiB", key, stat[key]>>10)
	}
	b.WriteString("\n")
	return b.String()
}

// kernelLog returns the messages of the kernel itself, oldest first
// (Documentation/ABI/testing/dev-kmsg).
func kernelLog() []string {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var list []string
	buf := make([]byte, maxRecord)
	for range maxRecords {
		n, err := unix.Read(fd, buf)
		if err == unix.EPIPE { // overwritten meanwhile: goes on with the next
			continue
		}
		if err != nil {
			break // EAGAIN: all read
		}
		if m, ok := kernelMessage(string(buf[:n])); ok {
			list = append(list, m)
		}
	}
	return list
}

// kernelMessage takes a record "priority,…;message\n…" apart, in which the kernel
// has replaced what is not printable. ok is false for what a program has logged.
func kernelMessage(record string) (message string, ok bool) {
	head, text, _ := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	n, err := strconv.Atoi(priority)
	if err != nil || n>>3 != 0 { // the facility: 0 is the kernel
		return "", false
	}
	message, _, _ = strings.Cut(text, "\n")
	return message, true
}

// A victim is a process that was killed for memory.
type victim struct {
	name   string
	pid    uint64
	reason string
	memory string            // in the kernel's words
	stat   map[string]uint64 // memory.stat of its group then; nil when another's memory ran out
}

func (v *victim) String() string {
	s := fmt.Sprintf("killed %s (process %d), %s", v.name, v.pid, v.reason)
	if v.memory != "" {
		s += "; it had " + v.memory
	}
	return s
}

// findVictims finds the last victims of a cgroup in messages of the kernel:
//
//	memory: usage 32768kB, limit 32768kB, failcnt 37
//	Memory cgroup stats for /pod/c:
//	anon 33198080
//	…
//	oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/pod/c,task_memcg=/pod/c,task=tail,pid=386,uid=0
//	Memory cgroup out of memory: Killed process 386 (tail) total-vm:104672kB, anon-rss:8064kB, …
//
// Names are the processes' own choice, and may look like anything.
func findVictims(log []string, group string) []*victim {
	var list []*victim
	var stat map[string]uint64 // that is being printed for group
	for _, m := range log {
		if of, ok := strings.CutPrefix(m, "Memory cgroup stats for "); ok {
			if stat = nil; of == group+":" {
				stat = map[string]uint64{}
			}
			continue
		}
		if key, value, ok := strings.Cut(m, " "); ok && stat != nil {
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				stat[key] = n
				continue
			}
		}
		if line, ok := strings.CutPrefix(m, "oom-kill:"); ok {
			if v := parseVictim(line, group); v != nil {
				v.stat = stat
				list = append(list, v)
			}
			stat = nil
			continue
		}
		if n := len(list); n > 0 && list[n-1].memory == "" {
			list[n-1].memory = memoryOf(m, list[n-1].pid)
		}
	}
	return list[max(0, len(list)-maxVictims):]
}

// parseVictim parses what follows "oom-kill:"; nil when the victim was not in group.
func parseVictim(line, group string) *victim {
	head, ids, ok := cutLast(line, ",pid=")
	if !ok {
		return nil
	}
	head, name, ok := cutLast(head, ",task=")
	if !ok {
		return nil
	}
	head, in, ok := cutLast(head, ",task_memcg=")
	if !ok || !strings.HasPrefix(in+"/", group+"/") {
		return nil
	}
	v := &victim{name: name, reason: "the VM's memory was used up"}
	pid, _, _ := strings.Cut(ids, ",")
	v.pid, _ = strconv.ParseUint(pid, 10, 64)
	if _, whose, ok := cutLast(head, ",oom_memcg="); ok {
		v.reason = "the container was at its limit"
		if !strings.HasPrefix(whose+"/", group+"/") {
			v.reason = "all containers together were at the pod's limit"
		}
	}
	return v
}

// memoryOf is what a message says of the memory of a process that was killed.
func memoryOf(message string, pid uint64) string {
	_, rest, ok := strings.Cut(message, fmt.Sprintf("Killed process %d (", pid))
	if !ok {
		return ""
	}
	_, numbers, ok := cutLast(rest, ") total-vm:")
	if !ok {
		return ""
	}
	var words []string
	for f := range strings.SplitSeq(numbers, ", ") {
		if name, value, ok := strings.Cut(f, ":"); ok && strings.HasSuffix(name, "-rss") {
			value, _, _ = strings.Cut(value, "kB")
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				words = append(words, fmt.Sprintf("%s %d KiB", name, n))
			}
		}
	}
	return strings.Join(words, ", ")
}

// cutLast is strings.Cut around the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
