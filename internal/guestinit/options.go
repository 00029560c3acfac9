package guestinit

import "golang.org/x/sys/unix"

// options are a mount's options, sorted by who takes them.
type options struct {
	bind, recursive bool
	set, clear      uint64 // attributes of mount_setattr(2)
	propagation     uint64
	data            []string // the file system's own
}

// attributes of a mount by their names in fstab(5) and the OCI runtime spec.
var attributes = map[string]struct{ set, clear uint64 }{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"noatime":     {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"relatime":    {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"atime":       {}, "defaults": {}, "norelatime": {}, "nostrictatime": {}, "async": {},
}

var propagations = map[string]struct {
	flag      uint64
	recursive bool
}{
	"private": {unix.MS_PRIVATE, false}, "rprivate": {unix.MS_PRIVATE, true},
	"shared": {unix.MS_SHARED, false}, "rshared": {unix.MS_SHARED, true},
	"slave": {unix.MS_SLAVE, false}, "rslave": {unix.MS_SLAVE, true},
	"unbindable": {unix.MS_UNBINDABLE, false}, "runbindable": {unix.MS_UNBINDABLE, true},
}

func parseOptions(list []string) options {
	var o options
	for _, name := range list {
		if a, ok := attributes[name]; ok {
			o.set = o.set&^a.clear | a.set
			o.clear |= a.clear
			continue
		}
		if p, ok := propagations[name]; ok {
			o.propagation = p.flag
			o.recursive = o.recursive || p.recursive && o.bind
			continue
		}
		switch name {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.recursive = true, true
		default:
			o.data = append(o.data, name)
		}
	}
	return o
}
