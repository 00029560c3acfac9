package spawn

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An op is one system call of the child. clone_amd64.s knows its layout.
type op struct {
	nr       uintptr
	arg      [6]uintptr
	skip     uintptr     // how many ops to skip when it succeeds
	store    uintptr     // where to store the result; 0: nowhere
	tolerate [3]tolerate // errors that are none
}

// giveUp as an op's nr reports arg[0] as the error.
const giveUp = ^uintptr(0)

type tolerate struct{ errno, skip uintptr }

// A Plan is what a child does between its birth and its program: a list of
// system calls, made in order by code that is no Go (the child shares this
// process's memory). A Plan is used once.
type Plan struct {
	ops   []op
	steps []string // what each op does, for errors
	keep  []any    // memory that ops point to
}

// do adds a system call. step says in words what it does, for an error.
func (p *Plan) do(step string, nr uintptr, args ...uintptr) *op {
	o := op{nr: nr}
	copy(o.arg[:], args)
	p.ops = append(p.ops, o)
	p.steps = append(p.steps, step)
	return &p.ops[len(p.ops)-1]
}

// except adds an error that does not fail the plan but skips n more ops.
func (o *op) except(errno syscall.Errno, n int) *op {
	for i := range o.tolerate {
		if o.tolerate[i].errno == 0 {
			o.tolerate[i] = tolerate{uintptr(errno), uintptr(n)}
			return o
		}
	}
	panic("spawn: more exceptions than an op has room for")
}

// str puts a string where the child finds it.
func (p *Plan) str(s string) uintptr {
	b := append([]byte(s), 0)
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

// strs is str for argument vectors.
func (p *Plan) strs(list []string) uintptr {
	v := make([]uintptr, 0, len(list)+1)
	for _, s := range list {
		v = append(v, p.str(s))
	}
	v = append(v, 0)
	p.keep = append(p.keep, v)
	return uintptr(unsafe.Pointer(&v[0]))
}

// mem puts a value where the child finds it.
func mem[T any](p *Plan, v T) uintptr {
	at := new(T)
	*at = v
	p.keep = append(p.keep, at)
	return uintptr(unsafe.Pointer(at))
}

// NewSession makes the child the leader of a session of its own.
func (p *Plan) NewSession() { p.do("make a session", unix.SYS_SETSID) }

// Enter moves the child into the namespace that fd is.
func (p *Plan) Enter(fd int, name string) {
	p.do("enter "+name+" namespace", unix.SYS_SETNS, uintptr(fd), 0)
}

// Unshare makes new namespaces.
func (p *Plan) Unshare(flags int) { p.do("make namespaces", unix.SYS_UNSHARE, uintptr(flags)) }

// Mount is mount(2).
func (p *Plan) Mount(source, target, fstype string, flags uintptr, data string) {
	p.mount(source, target, fstype, flags, data)
}

func (p *Plan) mount(source, target, fstype string, flags uintptr, data string) *op {
	return p.do("mount "+target, unix.SYS_MOUNT, p.str(source), p.str(target), p.str(fstype), flags, p.str(data))
}

// Mask hides a path: a file behind /dev/null, a directory behind an empty
// one. A path that does not exist is left alone.
func (p *Plan) Mask(path string) {
	null := p.mount("/dev/null", path, "", unix.MS_BIND, "")
	null.skip = 1
	null.except(syscall.ENOENT, 1).except(syscall.ENOTDIR, 0)
	p.mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nr_inodes=2,size=4k")
}

// ReadOnly makes what lies at and below a path read-only, if it exists.
func (p *Plan) ReadOnly(path string) {
	p.mount(path, path, "", unix.MS_BIND|unix.MS_REC, "").except(syscall.ENOENT, 1)
	attr := mem(p, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	p.do("make "+path+" read-only", unix.SYS_MOUNT_SETATTR, at(unix.AT_FDCWD), p.str(path), unix.AT_RECURSIVE, attr, unsafe.Sizeof(unix.MountAttr{}))
}

func at(fd int) uintptr { return uintptr(fd) }

// Stdio makes fds the child's descriptors 0, 1 and 2.
func (p *Plan) Stdio(fds [3]int) {
	for i, fd := range fds {
		p.do("connect standard streams", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
}

// ControllingTerminal makes descriptor 0 the session's terminal.
func (p *Plan) ControllingTerminal() {
	p.do("take controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
}

// CloseOthers closes every descriptor but 0, 1 and 2 with execve.
func (p *Plan) CloseOthers() {
	// Everything is opened close-on-exec; this is the second lock.
	p.do("close descriptors", unix.SYS_CLOSE_RANGE, 3, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC).
		except(syscall.ENOSYS, 0).except(syscall.EINVAL, 0)
}

// Limit sets a resource limit.
func (p *Plan) Limit(resource int, soft, hard uint64, name string) {
	p.do("set "+name, unix.SYS_PRLIMIT64, 0, uintptr(resource), mem(p, unix.Rlimit{Cur: soft, Max: hard}), 0)
}

// Umask sets the file mode creation mask.
func (p *Plan) Umask(mask uint32) { p.do("set umask", unix.SYS_UMASK, uintptr(mask)) }

// Chdir changes the working directory.
func (p *Plan) Chdir(dir string) {
	p.do("change to working directory "+dir, unix.SYS_CHDIR, p.str(dir))
}

// User changes the identity, keeping permitted capabilities.
func (p *Plan) User(uid, gid uint32, groups []uint32) {
	p.do("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	list := uintptr(0)
	if len(groups) > 0 {
		g := append([]uint32(nil), groups...)
		p.keep = append(p.keep, g)
		list = uintptr(unsafe.Pointer(&g[0]))
	}
	p.do("set groups", unix.SYS_SETGROUPS, uintptr(len(groups)), list)
	p.do("set group", unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid))
	p.do("set user", unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
}

// DropBounding removes a capability from the bounding set.
func (p *Plan) DropBounding(capability int) {
	p.do("drop capability from bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(capability))
}

// Capabilities sets the three classic sets, as bit masks.
func (p *Plan) Capabilities(effective, permitted, inheritable uint64) {
	hdr := mem(p, unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3})
	data := mem(p, [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	})
	p.do("set capabilities", unix.SYS_CAPSET, hdr, data)
}

// RaiseAmbient adds a capability to the ambient set.
func (p *Plan) RaiseAmbient(capability int) {
	p.do("raise ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(capability))
}

// NoNewPrivileges is PR_SET_NO_NEW_PRIVS.
func (p *Plan) NoNewPrivileges() {
	p.do("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
}

// sockFilterSize is that of struct sock_filter.
const sockFilterSize = unsafe.Sizeof(unix.SockFilter{})

// Seccomp installs a filter, an array of struct sock_filter that is not empty;
// flags are those of seccomp(2).
func (p *Plan) Seccomp(filter []byte, flags uint32) {
	p.keep = append(p.keep, filter)
	n := uint16(uintptr(len(filter)) / sockFilterSize)
	prog := mem(p, unix.SockFprog{Len: n, Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))})
	p.do("install seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), prog)
}

// Exec ends a plan: it runs the first of paths that can be executed. What
// can't be found is passed over, and what may not be executed too, unless
// nothing else is found.
func (p *Plan) Exec(paths, args, env []string) {
	p.do("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, mem(p, uint64(0)), 0, 8)
	argv, envp := p.strs(args), p.strs(env)
	n := len(paths)
	// Twice the list: once EACCES was met, the second is gone on with, whose
	// end says EACCES.
	for _, denied := range []bool{false, true} {
		for _, path := range paths {
			o := p.do(execStep, unix.SYS_EXECVE, p.str(path), argv, envp)
			o.except(syscall.ENOENT, 0).except(syscall.ENOTDIR, 0)
			if denied {
				o.except(syscall.EACCES, 0)
			} else {
				o.except(syscall.EACCES, n+1)
			}
		}
		errno := syscall.ENOENT
		if denied {
			errno = syscall.EACCES
		}
		p.do(execStep, giveUp, uintptr(errno))
	}
}

// execStep is the step that names the program itself as the culprit.
const execStep = "exec"

// ExecFD ends a plan: it runs the program that fd is, a descriptor that is
// closed on exec.
func (p *Plan) ExecFD(fd int, args, env []string) {
	p.do("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, mem(p, uint64(0)), 0, 8)
	p.do("exec init", unix.SYS_EXECVEAT, uintptr(fd), p.str(""), p.strs(args), p.strs(env), unix.AT_EMPTY_PATH)
	p.do("exec init", giveUp, uintptr(syscall.ENOSYS))
}

func (p *Plan) alive() { runtime.KeepAlive(p) }
