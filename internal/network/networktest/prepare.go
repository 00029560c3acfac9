package networktest

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/network"
)

// ahead is time for devices to be made. When it was too little the tests
// still hold, but test less.
const ahead = 300 * time.Millisecond

func preparer(t *testing.T, d network.Driver) network.Preparer {
	t.Helper()
	p, ok := d.(network.Preparer)
	if !ok {
		t.Skip("not a Preparer")
	}
	return p
}

// testPrepared: whether a device was ready makes no difference but in time.
func testPrepared(t *testing.T, d network.Driver) {
	p := preparer(t, d)
	p.Prepare(4)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for round := range 2 {
		time.Sleep(ahead)
		if _, err := d.Attach(ctx, id(0)); err == nil {
			t.Error("attached with a cancelled context")
		}
		if _, err := d.Attach(t.Context(), "../../x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("bad pod ID: %v, want an invalid argument", err)
		}
		var list []network.Attachment
		for i := range 6 {
			a := attach(t, d, id(10*round+i))
			if a.PodID != id(10*round+i) {
				t.Errorf("attached pod %s as %s", id(10*round+i), a.PodID)
			}
			if _, err := d.Attach(t.Context(), a.PodID); !errdefs.IsAlreadyExists(err) {
				t.Errorf("pod %s again: %v, want already exists", a.PodID, err)
			}
			list = append(list, a)
		}
		distinct(t, list)
		p.Prepare(2 * round) // less or none
		for _, a := range list {
			for range 2 {
				f, err := d.Open(t.Context(), a)
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := d.Detach(t.Context(), a); err != nil {
				t.Error(err)
			}
			if f, err := d.Open(t.Context(), a); !errdefs.IsNotFound(err) {
				f.Close()
				t.Errorf("open after detach: %v, want not found", err)
			}
		}
	}
	time.Sleep(ahead)
	testComplete(t, d)
}

func testSpare(t *testing.T, d network.Driver) {
	p := preparer(t, d)
	for range 2 {
		f, err := p.Spare(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
}

// testRestorePrepared: what was ready belongs to nobody after a restart, nor
// after Restore in the same process.
func testRestorePrepared(t *testing.T, start func(t *testing.T) network.Driver) {
	before := begin(t, start)
	if err := before.Restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	preparer(t, before).Prepare(4)
	time.Sleep(ahead)
	now := []network.Attachment{attach(t, before, id(0)), attach(t, before, id(1))}
	time.Sleep(ahead)
	if err := before.Restore(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	now = append(now, attach(t, before, id(2)))
	time.Sleep(ahead)
	now = append(now, attach(t, before, id(3)))
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	after := begin(t, start)
	if err := after.Restore(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	preparer(t, after).Prepare(3)
	time.Sleep(ahead)
	for i := range 10 {
		now = append(now, attach(t, after, id(100+i)))
	}
	distinct(t, now)
	for _, a := range now {
		f, err := after.Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
