package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/vmm"
)

// A Store is all templates of one hyperd. Its methods may be called
// concurrently.
type Store struct {
	cfg       Config
	kernels   sums
	available func() (int64, error) // bytes of the host's memory

	loopControl string    // path
	noLoop      sync.Once // logs why

	turn   chan struct{} // of who makes a template: one at a time
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry // by ID
	thrown  int               // names what is thrown away
}

// An entry is one template, from when it is first asked for. Guarded by
// Store.mu, except for what never changes.
type entry struct {
	id   string
	key  key
	info Info

	ready    *Template // in memory; nil: not
	fresh    int64     // bytes it occupied when it was put there
	kept     bool      // there are files
	task     *task     // that loads or makes it; nil: none
	unused   *time.Timer
	clones   atomic.Int64
	spoiled  int // times in a row
	failures int // to make it, in a row
	retry    time.Time
}

// A task loads a template, or makes it.
type task struct {
	cancel context.CancelCauseFunc
	loaded chan struct{} // closed when it is loaded, or has to be made
	done   chan struct{} // closed at the end
	err    error         // valid then
}

// A Template is ready to be cloned, also after it was removed from its Store:
// what it is made of goes with the last clone, once nobody has the Template
// any more and the garbage collector has closed its files.
type Template struct {
	ID    string
	Shape Shape

	saved   vmm.Saved
	machine vmm.Machine // what the driver chose
	accel   vmm.Accel
	created time.Time
	clones  *atomic.Int64 // of the entry
	cached  int64         // bytes, of a device's data
}

// A NotReadyError says why there is no template to clone now. It is of kind
// errdefs.ErrUnavailable.
type NotReadyError struct{ Why string }

func (e *NotReadyError) Error() string { return "no template: " + e.Why }

// Unwrap gives the kind.
func (e *NotReadyError) Unwrap() error { return errdefs.ErrUnavailable }

// errEnds is why nothing is begun any more.
var errEnds = fmt.Errorf("hyperd ends: %w", context.Canceled)

const (
	// After a failure nothing is made for minBackoff, after each further one
	// in a row for twice as long, at most maxBackoff.
	minBackoff = 30 * time.Second
	maxBackoff = 10 * time.Minute

	// maxGrowth is how much more a template may occupy than it did at first
	// before it is loaded anew. A page that a clone touches in a hole of a
	// memfd becomes a page of zeros there too, for as long as the memfd lives.
	maxGrowth = 512 << 20
)

func backoff(failures int) time.Duration {
	return min(minBackoff<<min(failures-1, 10), maxBackoff)
}

// Open returns the templates in cfg.Dir. It ends VMs that an earlier Store
// left half-made. Files are loaded when they are asked for.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, available: memAvailable, loopControl: loopControl, turn: make(chan struct{}, 1), entries: make(map[string]*entry)}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for _, dir := range []string{cfg.Dir, cfg.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open templates: %w", err)
		}
	}
	making, err := os.ReadDir(cfg.RunDir)
	if err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	for _, e := range making {
		if err := s.sweep(ctx, filepath.Join(cfg.RunDir, e.Name())); err != nil {
			cfg.Log.Error("clean up after making a template", "err", err)
		}
	}
	kept, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	for _, e := range kept {
		s.openKept(ctx, e.Name())
	}
	return s, nil
}

// openKept looks at what is in Dir under a name, and removes it unless it is
// a template that may be asked for.
func (s *Store) openKept(ctx context.Context, name string) {
	dir := filepath.Join(s.cfg.Dir, name)
	m, err := readManifest(dir)
	if err == nil {
		err = s.wanted(ctx, m, name)
	}
	if err != nil {
		s.cfg.Log.Info("remove template", "id", name, "why", err)
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Log.Warn("remove files of template", "err", err)
		}
		return
	}
	e := s.newEntry(name, m.Key, m.Shape)
	e.kept = true
	e.info.Status, e.info.Created, e.info.MakeTime = StatusReady, m.Created, m.MakeTime
}

// wanted says why the template of m in the directory name isn't.
func (s *Store) wanted(ctx context.Context, m manifest, name string) error {
	if name != m.Key.id() {
		return errors.New("it is of no template")
	}
	if s.cfg.Keep != nil && !s.cfg.Keep(m.Shape) {
		return errors.New("its shape is not asked for any more")
	}
	caps, err := s.cfg.Driver.Probe(ctx)
	if err != nil {
		return nil // nothing is asked for until that works
	}
	if m.Key.VMM != caps.Identity || m.Key.Driver != s.cfg.Driver.Name() {
		return errors.New("it is of another VMM or host")
	}
	return nil
}

// newEntry puts one into s.entries; the caller holds s.mu, but for Open.
func (s *Store) newEntry(id string, k key, shape Shape) *entry {
	e := &entry{id: id, key: k, info: Info{ID: id, Shape: shape, VMM: k.VMM, Accel: k.Accel}}
	s.entries[id] = e
	return e
}

// Find returns a template to clone. When there is none it begins to load or
// make one; it waits for loading (0.1 s), but not for making: then, and when
// there can't be one or making failed lately, the error is a *[NotReadyError].
func (s *Store) Find(ctx context.Context, shape Shape) (*Template, error) {
	k, err := s.key(ctx, shape)
	if err != nil {
		return nil, &NotReadyError{err.Error()}
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, &NotReadyError{errEnds.Error()}
	}
	e := s.entryLocked(k, shape)
	mayStart := e.task == nil && !time.Now().Before(e.retry)
	if t := e.ready; t != nil {
		s.useLocked(e)
		if mayStart && e.grown() {
			s.startLocked(e, shape)
		}
		s.mu.Unlock()
		return t, nil
	}
	if mayStart {
		s.startLocked(e, shape)
	}
	if e.task == nil {
		defer s.mu.Unlock()
		return nil, &NotReadyError{e.info.Error}
	}
	t := e.task
	s.mu.Unlock()
	select {
	case <-t.loaded:
	case <-ctx.Done():
		return nil, fmt.Errorf("load template %s: %w", e.id, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.ready != nil:
		s.useLocked(e)
		return e.ready, nil
	case e.info.Status == StatusMaking:
		return nil, &NotReadyError{"it is being made"}
	}
	return nil, &NotReadyError{e.info.Error}
}

func (s *Store) entryLocked(k key, shape Shape) *entry {
	for _, e := range s.entries { // a handful, and hashing k takes longer
		if e.key == k {
			return e
		}
	}
	return s.newEntry(k.id(), k, shape)
}

// useLocked notes that e, which is ready, is used.
func (s *Store) useLocked(e *entry) {
	e.info.LastUsed = time.Now()
	if e.unused != nil {
		e.unused.Reset(s.cfg.Unused)
	}
}

// grown says whether clones have filled so many holes that it is time to
// load the template anew.
func (e *entry) grown() bool {
	return occupied(e.ready.saved.Memory) > e.fresh+maxGrowth
}

// Clone makes cfg, whose disks have the IDs of slots, the configuration of a
// clone: the slots that it does not fill stay empty.
func (t *Template) Clone(cfg *vmm.Config) {
	t.clones.Add(1)
	disks := t.Shape.Slots()
	for _, d := range cfg.Disks {
		i := slices.IndexFunc(disks, func(slot vmm.Disk) bool { return slot.ID == d.ID })
		if i < 0 {
			disks = append(disks, d) // the driver says what is wrong with it
			continue
		}
		disks[i] = d
	}
	cfg.Disks = disks
	cfg.Restore = &vmm.Saved{Memory: t.saved.Memory, State: t.saved.State}
	cfg.Accel, cfg.Machine, cfg.CPUs, cfg.MemMiB = t.accel, t.machine, t.Shape.CPUs, t.Shape.MemMiB
	cfg.Plug = t.Shape.Plug
	cfg.Kernel, cfg.Initrd, cfg.Cmdline = "", "", "" // they are in its memory
}

// Spoiled says that a clone did not come up because of the template: it is
// dropped, and made anew when it is next asked for.
func (s *Store) Spoiled(t *Template, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[t.ID]
	if s.closed || e == nil || e.ready != t {
		return // it is dropped already, or another one by now
	}
	s.cfg.Log.Warn("drop template that can't be cloned", "id", e.id, "err", err)
	if time.Since(t.created) > maxBackoff {
		e.spoiled = 0 // it was good for long
	}
	s.dropLocked(e)
	s.warn(s.throwAwayLocked(e))
	e.spoiled++
	e.info.Status, e.info.Error = StatusFailed, "it can't be cloned: "+brief(err)
	if e.spoiled > 1 {
		e.retry = time.Now().Add(backoff(e.spoiled - 1))
	}
}

// brief is the first line of an error; the log has the rest.
func brief(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// Make returns when there is a template of that shape, which it makes if need
// be, also when that failed a moment ago. Errors say why it could not be made.
// It is made also when ctx ends.
func (s *Store) Make(ctx context.Context, shape Shape) (Info, error) {
	k, err := s.key(ctx, shape)
	if err != nil {
		return Info{}, fmt.Errorf("make template: %w", err)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Info{}, fmt.Errorf("make template: %w", errEnds)
	}
	e := s.entryLocked(k, shape)
	if e.ready != nil {
		defer s.mu.Unlock()
		return s.infoLocked(e), nil
	}
	if e.task == nil {
		s.startLocked(e, shape)
	}
	t := e.task
	s.mu.Unlock()
	select {
	case <-t.done:
	case <-ctx.Done():
		return Info{}, fmt.Errorf("make template %s: %w", e.id, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.infoLocked(e), t.err
}

// List returns all templates, the latest made first.
func (s *Store) List() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Info
	for _, e := range s.entries {
		list = append(list, s.infoLocked(e))
	}
	slices.SortFunc(list, func(a, b Info) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

func (s *Store) infoLocked(e *entry) Info {
	i := e.info
	i.Clones = int(e.clones.Load())
	if t := e.ready; t != nil {
		i.MemoryBytes = occupied(t.saved.Memory, t.saved.State) + t.cached
	}
	if e.kept {
		for _, name := range []string{manifestName, memoryName, stateName} {
			var st unix.Stat_t
			if unix.Stat(filepath.Join(s.dir(e.id), name), &st) == nil {
				i.DiskBytes += st.Blocks * 512
			}
		}
	}
	return i
}

// Get returns the template with an ID or a unique prefix of one.
// Errors: errdefs NotFound, InvalidArgument (ambiguous).
func (s *Store) Get(ref string) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.findLocked(ref)
	if err != nil {
		return Info{}, err
	}
	return s.infoLocked(e), nil
}

func (s *Store) findLocked(ref string) (*entry, error) {
	var found *entry
	for id, e := range s.entries {
		switch {
		case ref == "" || !strings.HasPrefix(id, ref):
		case found != nil:
			return nil, fmt.Errorf("template %s is ambiguous: %w", ref, errdefs.ErrInvalidArgument)
		default:
			found = e
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no such template: %s: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// Remove drops a template and its files; clones of it run on. It ends making
// it, and waits for that.
func (s *Store) Remove(ref string) error {
	s.mu.Lock()
	e, err := s.findLocked(ref)
	for err == nil && e.task != nil {
		t := e.task
		t.cancel(fmt.Errorf("it is being removed: %w", context.Canceled))
		s.mu.Unlock()
		<-t.done
		s.mu.Lock()
		e, err = s.findLocked(ref)
	}
	defer s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.forgetLocked(e)
}

// forgetLocked drops a template that nobody works on, with its files.
func (s *Store) forgetLocked(e *entry) error {
	s.dropLocked(e)
	delete(s.entries, e.id)
	return s.throwAwayLocked(e)
}

func (s *Store) warn(err error) {
	if err != nil {
		s.cfg.Log.Warn("remove stale template", "err", err)
	}
}

// dropLocked drops e from memory.
func (s *Store) dropLocked(e *entry) {
	if e.unused != nil {
		e.unused.Stop()
	}
	e.ready, e.unused = nil, nil
}

// throwAwayLocked removes the files of e: under another name at once, in the
// background from the disk.
func (s *Store) throwAwayLocked(e *entry) error {
	if !e.kept {
		return nil
	}
	e.kept = false
	s.thrown++
	trash := filepath.Join(s.cfg.Dir, fmt.Sprintf("%s.old%d", e.id, s.thrown))
	if err := os.Rename(s.dir(e.id), trash); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove files of template: %w", err)
	}
	s.tasks.Go(func() {
		if err := os.RemoveAll(trash); err != nil {
			s.cfg.Log.Warn("remove files of template", "err", err)
		}
	})
	return nil
}

func (s *Store) dir(id string) string { return filepath.Join(s.cfg.Dir, id) }

// Close ends what is being made or loaded, and waits for it.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.cancel(errEnds)
	for _, e := range s.entries {
		s.dropLocked(e)
	}
	s.mu.Unlock()
	s.tasks.Wait()
}
