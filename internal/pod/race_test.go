package pod

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/vmm"
)

// The record on disk is the container's last state, in whatever order the
// goroutines that save it run.
func TestLastStateIsSaved(t *testing.T) {
	b := newBench(t)
	c := b.set.mustFind(t, b.create(sh("true")))
	const last = 400
	var wg sync.WaitGroup
	for i := range last + 1 {
		c.mu.Lock()
		c.rec.RestartCount = i
		c.mu.Unlock()
		wg.Go(func() {
			if err := c.save(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	recs, err := store.Load[record](b.stores[0], bucketContainers)
	if err != nil || recs[c.id].RestartCount != last {
		t.Errorf("saved state %d of %d, %v", recs[c.id].RestartCount, last, err)
	}
}

func TestForcedRemovalWhileStarting(t *testing.T) {
	b := newBench(t)
	b.driver.Guest = func(conn net.Conn, console io.Writer, cfg vmm.Config) vmm.Exit {
		time.Sleep(200 * time.Millisecond)
		return serveFakeGuest(conn, console, cfg)
	}
	id := b.create(sh("sleep 1000"))
	started := make(chan error, 1)
	go func() { started <- b.set.Start(t.Context(), id) }()
	time.Sleep(50 * time.Millisecond)
	if err := b.set.Remove(t.Context(), id, true); err != nil {
		t.Error(err)
	}
	if err := <-started; err != nil {
		t.Error(err)
	}
	if _, err := b.set.Get(id); err == nil {
		t.Error("still there")
	}
}

// Who finds a container by its name while it is being made waits.
func TestRemovalWhileCreating(t *testing.T) {
	b := newBench(t)
	making := make(chan struct{})
	b.set.cfg.CreateDisk = func(path string, _ int64, _ bool) error {
		close(making)
		time.Sleep(100 * time.Millisecond)
		return os.WriteFile(path, nil, 0o600)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := b.set.Create(t.Context(), CreateOptions{Name: "half", Spec: Spec{Args: []string{"true"}, Network: "none"}})
		done <- err
	}()
	<-making
	if err := b.set.Remove(t.Context(), "half", false); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// hyperd was killed after the guest had been told to forget how a process
// ended, and before the container's record had it.
func TestAdoptWhatHasEnded(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("sleep 1000"))
	r, err := b.set.mustFind(t, id).running()
	if err != nil {
		t.Fatal(err)
	}
	err = r.vm.setRun(id, func(rr *runRecord) {
		*rr = runRecord{PID: 1, StartedAt: time.Now(), Ended: &End{Cause: CauseExit, ExitCode: 7, FinishedAt: time.Now()}}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.down()
	b.up()
	c, err := b.set.Get(id)
	if err != nil || c.Status != StatusExited || c.ExitCode != 7 || c.Error != "" || b.driver.VMs() != 0 {
		t.Errorf("%+v, %v, %d VMs", c, err, b.driver.VMs())
	}
}

// The end of a run is recorded before the guest forgets it.
func TestEndIsRecordedFirst(t *testing.T) {
	b := newBench(t)
	id := b.start(sh("read x; exit 7"))
	r, err := b.set.mustFind(t, id).running()
	if err != nil {
		t.Fatal(err)
	}
	b.wait(id)
	if e := r.vm.rec.Containers[id].Ended; e == nil || e.ExitCode != 7 {
		t.Errorf("recorded %+v", e)
	}
}
