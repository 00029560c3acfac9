// Package rootfs makes the disks a guest mounts: read-only layers as EROFS
// files, each converted once and shared by every VM of the host, and
// writable ext4 disks copied from a formatted blank.
//
// It never mounts anything and never runs as part of a start except to copy
// the blank. Layers are uncompressed and padded to 2 MiB so that the host's
// page cache and DAX can serve them.
package rootfs
