// Package networktest holds the suite that every network.Driver passes, and
// a fake that passes it too.
package networktest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/hyper-run/hyper/internal/network"
)

// Run checks the contract. start returns a driver as it is in a daemon that
// has just started, before Restore, on a host that stays the same from call
// to call. It has room for 64 pods at least.
func Run(t *testing.T, start func(t *testing.T) network.Driver) {
	tests := []struct {
		name string
		run  func(t *testing.T, d network.Driver)
	}{
		{"attachment is complete", testComplete},
		{"pods differ", testDiffer},
		{"pod IDs", testPodIDs},
		{"cancelled attach leaves nothing", testCancelled},
		{"open", testOpen},
		{"detach", testDetach},
		{"late detach spares the successor", testLateDetach},
		{"addresses rest before they are given again", testRest},
		{"made ahead of time", testPrepared},
		{"connected to nothing", testSpare},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := begin(t, start)
			if err := d.Restore(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			tt.run(t, d)
		})
	}
	t.Run("restore", func(t *testing.T) { testRestore(t, start) })
	t.Run("restore after some were made ahead of time", func(t *testing.T) { testRestorePrepared(t, start) })
	t.Run("restore of two with one address", func(t *testing.T) { testRestoreConflict(t, start) })
}

// begin starts a driver that leaves nothing behind after the test.
func begin(t *testing.T, start func(t *testing.T) network.Driver) network.Driver {
	t.Helper()
	d := start(t)
	t.Cleanup(func() {
		if err := d.Restore(context.Background(), nil); err != nil {
			t.Errorf("clean up: %v", err)
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
	return d
}

func id(n int) string { return fmt.Sprintf("%012x%052x", n+1, 0) }

func attach(t *testing.T, d network.Driver, podID string) network.Attachment {
	t.Helper()
	a, err := d.Attach(t.Context(), podID)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testComplete(t *testing.T, d network.Driver) {
	a := attach(t, d, id(0))
	if a.Network == "" || a.PodID != id(0) || a.Device == "" || len(a.Device) > 15 {
		t.Errorf("names of %+v", a)
	}
	if len(a.MAC) != 6 || a.MAC[0]&3 != 2 {
		t.Errorf("MAC %v is not a locally administered unicast address", a.MAC)
	}
	if len(a.Addrs) == 0 || len(a.Gateway) != len(a.Addrs) || len(a.DNS) == 0 {
		t.Fatalf("addresses of %+v", a)
	}
	for i, p := range a.Addrs {
		if !p.IsValid() || p.Bits() == 0 || !p.Masked().Contains(a.Gateway[i]) || p.Addr() == a.Gateway[i] || p.Addr() == p.Masked().Addr() {
			t.Errorf("address %v with gateway %v", p, a.Gateway[i])
		}
	}
	if a.MTU < 1280 {
		t.Errorf("MTU %d", a.MTU)
	}
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var again network.Attachment
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fmt.Sprint(a), fmt.Sprint(again)); diff != "" {
		t.Errorf("changed by being persisted (-before +after):\n%s", diff)
	}
}

func testDiffer(t *testing.T, d network.Driver) {
	const n = 32
	got := make([]network.Attachment, n)
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			var err error
			got[i], err = d.Attach(t.Context(), id(i))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	distinct(t, got)
	for _, a := range got {
		g.Go(func() error { return d.Detach(t.Context(), a) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// distinct fails when two attachments share what must be a pod's own.
func distinct(t *testing.T, list []network.Attachment) {
	t.Helper()
	owner := map[string]string{}
	for _, a := range list {
		keys := []string{a.Device, a.MAC.String()}
		for _, p := range a.Addrs {
			keys = append(keys, p.Addr().String())
		}
		for _, k := range keys {
			if other, ok := owner[k]; ok {
				t.Errorf("pods %s and %s both have %s", other, a.PodID, k)
			}
			owner[k] = a.PodID
		}
	}
}

func testPodIDs(t *testing.T, d network.Driver) {
	for _, bad := range []string{"", "../../x", "a b", "Z", "a\x00"} {
		if _, err := d.Attach(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("pod ID %q: %v, want an invalid argument", bad, err)
		}
	}
	a := attach(t, d, id(0))
	for _, clash := range []string{id(0), id(0)[:12], id(0)[:12] + "ffff"} {
		if _, err := d.Attach(t.Context(), clash); !errdefs.IsAlreadyExists(err) {
			t.Errorf("pod ID %q beside %q: %v, want already exists", clash, a.PodID, err)
		}
	}
}

func testCancelled(t *testing.T, d network.Driver) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Attach(ctx, id(0)); err == nil {
		t.Error("attached with a cancelled context")
	}
	attach(t, d, id(0))
}

func testOpen(t *testing.T, d network.Driver) {
	a := attach(t, d, id(0))
	for range 2 {
		f, err := d.Open(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	stranger := a
	stranger.PodID = id(1)
	if f, err := d.Open(t.Context(), stranger); !errdefs.IsNotFound(err) {
		f.Close()
		t.Errorf("device of another pod: %v, want not found", err)
	}
}

func testDetach(t *testing.T, d network.Driver) {
	a := attach(t, d, id(0))
	for range 2 {
		if err := d.Detach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := d.Open(t.Context(), a); !errdefs.IsNotFound(err) {
		f.Close()
		t.Errorf("open after detach: %v, want not found", err)
	}
	attach(t, d, id(0))
}

func testLateDetach(t *testing.T, d network.Driver) {
	old := attach(t, d, id(0))
	if err := d.Detach(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	now := attach(t, d, id(0)[:12]+"00000001")
	if err := d.Detach(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	f, err := d.Open(t.Context(), now)
	if err != nil {
		t.Fatalf("the later pod lost its device: %v", err)
	}
	f.Close()
}

func testRest(t *testing.T, d network.Driver) {
	seen := map[netip.Addr]bool{}
	for i := range 10 {
		a := attach(t, d, id(i))
		if addr := a.Addrs[0].Addr(); seen[addr] {
			t.Errorf("%v was given again at once", addr)
		}
		seen[a.Addrs[0].Addr()] = true
		if err := d.Detach(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
}

func testRestore(t *testing.T, start func(t *testing.T) network.Driver) {
	before := begin(t, start)
	if err := before.Restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var all []network.Attachment
	for i := range 6 {
		all = append(all, attach(t, before, id(i)))
	}
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	after := begin(t, start)
	kept, lost := all[:4], all[4:]
	other := all[5]
	other.Network = "of another driver"
	if err := after.Restore(t.Context(), append([]network.Attachment{other}, kept...)); err != nil {
		t.Fatal(err)
	}
	for _, a := range kept {
		f, err := after.Open(t.Context(), a)
		if err != nil {
			t.Fatalf("in use before: %v", err)
		}
		f.Close()
	}
	for _, a := range lost {
		if f, err := after.Open(t.Context(), a); !errdefs.IsNotFound(err) {
			f.Close()
			t.Errorf("not in use: %v, want not found", err)
		}
	}
	now := kept
	for i := range 20 {
		now = append(now[:len(now):len(now)], attach(t, after, id(100+i)))
	}
	distinct(t, now)
	if a, b := now[0].Gateway[0], now[len(now)-1].Gateway[0]; a != b {
		t.Errorf("the gateway was %v before the restart and is %v", a, b)
	}
}

func testRestoreConflict(t *testing.T, start func(t *testing.T) network.Driver) {
	d := begin(t, start)
	if err := d.Restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	a, b := attach(t, d, id(0)), attach(t, d, id(1))
	double := b
	double.Addrs = a.Addrs
	if err := d.Restore(t.Context(), []network.Attachment{a, double}); err == nil {
		t.Error("two pods were restored with one address")
	}
	f, err := d.Open(t.Context(), a)
	if err != nil {
		t.Fatalf("the first of the two: %v", err)
	}
	f.Close()
}
