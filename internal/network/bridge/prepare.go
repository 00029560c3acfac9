package bridge

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// refillAfter is how long no pod was attached before devices are made ahead
// of time: those that start at once shall not share the CPU with that.
const refillAfter = 50 * time.Millisecond

// Prepare has n devices kept ready. They have names of their own, not their pods'.
func (d *Driver) Prepare(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.want = max(n, 0)
	d.restLocked()
}

// Spare returns a tap that is not on the bridge, and down.
func (d *Driver) Spare(ctx context.Context) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := openTap("")
	if err != nil {
		return nil, fmt.Errorf("make a device of network %s that is connected to nothing: %w", d.cfg.Network, err)
	}
	return f, nil
}

// restLocked has the refill wait from now on.
func (d *Driver) restLocked() {
	if d.want == len(d.idle) {
		return
	}
	d.last = time.Now()
	if d.timer == nil {
		d.timer = time.AfterFunc(refillAfter, d.refill)
	} else {
		d.timer.Reset(refillAfter)
	}
}

// refill is the timer's.
func (d *Driver) refill() {
	d.filling.Lock()
	defer d.filling.Unlock()
	for d.refillOne() {
	}
}

// refillOne makes one device, or removes one that is too many; false when
// there is nothing to do now. What stands in the way is said when a pod is
// attached; then it is tried again.
func (d *Driver) refillOne() bool {
	d.mu.Lock()
	missing := d.want - len(d.idle)
	wait := refillAfter - time.Since(d.last)
	switch {
	case missing == 0:
		d.mu.Unlock()
		return false
	case wait > 0:
		d.timer.Reset(wait)
		d.mu.Unlock()
		return false
	case missing < 0:
		p := d.idle[0]
		d.idle = d.idle[1:]
		d.mu.Unlock()
		return d.Detach(context.Background(), p.Attachment) == nil
	}
	p, err := d.newPortLocked("", strings.ToLower(rand.Text()[:podIDChars]))
	d.mu.Unlock()
	if err != nil || d.equip(context.Background(), p) != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.idle = append(d.idle, p)
	return true
}

// giveBack removes the devices that no pod has, and has no more made.
func (d *Driver) giveBack() error {
	d.mu.Lock()
	idle := d.idle
	d.idle, d.want = nil, 0
	if d.timer != nil {
		d.timer.Stop()
	}
	d.mu.Unlock()
	var g errgroup.Group
	for _, p := range idle {
		g.Go(func() error { return d.Detach(context.Background(), p.Attachment) })
	}
	return g.Wait()
}

// intact says whether a tap that was on the bridge and up still can be, and
// the rules are there. It asks only what can be answered without the kernel's
// lock on interfaces, which who removes one holds for milliseconds.
func (d *Driver) intact(device string, bridge int) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	tap, err := unix.NewIfreq(device)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, tap) != nil || tap.Uint16()&unix.IFF_UP == 0 {
		return false
	}
	br, err := unix.NewIfreq(d.cfg.Bridge)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, br) != nil || int(br.Uint32()) != bridge {
		return false
	}
	return d.tablesExist()
}
