package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	loopTries   = 16 // to get a free device before somebody else does

	// readAhead of a device, in 512 bytes. A fault on a hole takes a trip to the
	// device, so they had better be few: with 512 KiB the first writes of a clone
	// to 500 MB cost less than with a memfd, with 4 KiB three times as much.
	readAhead = 1024
)

// openLoop makes a block device that is the file src, read only. It is for
// memory that clones copy on write: the device can be opened for writing, as a VMM insists
// on, but not be written, punched or mapped shared and writable. What it caches
// is clean, so the host can take it back.
//
// The device goes with its last descriptor or mapping, whoever has it.
func openLoop(control string, src *os.File) (_ *os.File, err error) {
	ctl, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	var dev *os.File
	for try := 1; ; try++ {
		dev, err = configureLoop(ctl, src)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || try == loopTries {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			dev.Close()
		}
	}()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.BLKRASET, readAhead); err != nil {
		return nil, fmt.Errorf("set read-ahead of %s: %w", dev.Name(), err)
	}
	again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(dev.Fd())), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s as a VMM does: %w", dev.Name(), err)
	}
	return dev, again.Close()
}

// configureLoop puts src behind a free device; EBUSY: somebody else was faster.
func configureLoop(ctl, src *os.File) (*os.File, error) {
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("find a free loop device: %w", err)
	}
	dev, err := os.Open("/dev/loop" + strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	// Direct I/O, so that nothing is cached twice. The kernel goes without by
	// itself where the file system has none.
	cfg := unix.LoopConfig{Fd: uint32(src.Fd()), Size: pageSize}
	cfg.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err != nil {
		dev.Close()
		return nil, fmt.Errorf("put %s behind %s: %w", src.Name(), dev.Name(), err)
	}
	return dev, nil
}

// device makes a device of the memory that is kept at path, whose contents must
// be want. It returns nil where there are no such devices.
func (s *Store) device(ctx context.Context, path string, want contents) (*os.File, error) {
	src, err := openSized(path, want.Size)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dev, err := openLoop(s.loopControl, src)
	if err != nil {
		s.noLoop.Do(func() {
			s.cfg.Log.Warn("no loop device: memory that clones touch first is taken twice and kept", "err", err)
		})
		return nil, nil
	}
	// Reading also fills the device's cache: no clone waits for the disk.
	got, err := copyContents(ctx, nil, source{dev, src}, want.Size)
	if err == nil && got != want {
		err = fmt.Errorf("%s has changed: its hash is another one", path)
	}
	if err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// isDevice tells a device from a memfd.
func isDevice(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeDevice != 0
}
