package guestinit

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guestinit/spawn"
)

// plan is everything between the birth of a process and its program, in an
// order that matters: mounts need capabilities, giving up capabilities comes
// last, and after the seccomp filter only what a filter must allow anyway.
func (l *launch) plan() (*spawn.Plan, error) {
	caps, err := parseCapabilities(l.p.Capabilities, l.s.lastCap)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "start process: %v", err)
	}
	filter := l.c.filter
	p := new(spawn.Plan)
	p.NewSession()
	l.enter(p)
	p.Stdio([3]int{int(l.files[0].Fd()), int(l.files[1].Fd()), int(l.files[2].Fd())})
	if l.p.Terminal {
		p.ControllingTerminal()
	}
	p.CloseOthers()
	if err := l.limits(p); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "start process: %v", err)
	}
	umask := uint32(0o22)
	if u := l.p.User.Umask; u != nil {
		umask = *u
	}
	p.Umask(umask)
	for n := 0; n <= l.s.lastCap; n++ {
		if caps.bounding&(1<<n) == 0 {
			p.DropBounding(n)
		}
	}
	p.User(l.user.uid, l.user.gid, l.user.groups)
	if l.p.NoNewPrivileges {
		p.NoNewPrivileges()
	}
	// The filter may need CAP_SYS_ADMIN, chdir what the process will have.
	with := caps
	if filter != nil && !l.p.NoNewPrivileges {
		with.effective |= 1 << unix.CAP_SYS_ADMIN
		with.permitted |= 1 << unix.CAP_SYS_ADMIN
	}
	p.Capabilities(with.effective, with.permitted, with.inheritable)
	p.Chdir(l.p.Cwd)
	if filter != nil {
		p.Seccomp(filter.program, filter.flags)
	}
	if with != caps {
		p.Capabilities(caps.effective, caps.permitted, caps.inheritable)
	}
	for n := 0; n <= l.s.lastCap; n++ {
		if caps.ambient&(1<<n) != 0 {
			p.RaiseAmbient(n)
		}
	}
	l.exec(p)
	return p, nil
}

// enter moves the process into the container. Its own process also mounts
// what only the first of a PID namespace can.
func (l *launch) enter(p *spawn.Plan) {
	if l.own {
		p.Unshare(unix.CLONE_NEWCGROUP)
	}
	for _, sp := range l.c.spaces {
		p.Enter(int(sp.f.Fd()), sp.name)
	}
	if !l.own {
		return
	}
	for _, m := range l.c.late {
		o := parseOptions(m.Options)
		p.Mount(m.Source, m.Destination, m.Type, legacyFlags(o.set), strings.Join(o.data, ","))
	}
	if l.p.Terminal {
		p.Mount(l.files[0].Name(), "/dev/console", "", unix.MS_BIND, "")
	}
	for _, path := range l.c.spec.Linux.MaskedPaths {
		p.Mask(path)
	}
	for _, path := range l.c.spec.Linux.ReadonlyPaths {
		p.ReadOnly(path)
	}
}

// legacyFlags translates attributes of mount_setattr(2) to flags of mount(2).
func legacyFlags(set uint64) uintptr {
	var flags uintptr
	for _, t := range []struct {
		attr uint64
		flag uintptr
	}{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID},
		{unix.MOUNT_ATTR_NODEV, unix.MS_NODEV}, {unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
	} {
		if set&t.attr != 0 {
			flags |= t.flag
		}
	}
	return flags
}

func (l *launch) limits(p *spawn.Plan) error {
	for _, r := range l.p.Rlimits {
		n, ok := resources[r.Type]
		if !ok {
			return fmt.Errorf("unknown resource limit %q", r.Type)
		}
		p.Limit(n, r.Soft, r.Hard, r.Type)
	}
	return nil
}

var resources = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// exec ends the plan with the program.
func (l *launch) exec(p *spawn.Plan) {
	env := l.user.environment(l.p.Env)
	if l.r.Init && l.own && l.c.joins == nil { // a shared PID namespace has an init
		p.ExecFD(l.s.machine.self, append([]string{initName}, l.p.Args...), env)
		return
	}
	p.Exec(candidates(l.p.Args[0], env), l.p.Args, env)
}

// candidates are the paths that a program's name may stand for.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	var list []string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok && name != "" {
			list = nil
			for dir := range strings.SplitSeq(v, ":") {
				if dir == "" {
					dir = "."
				}
				list = append(list, path.Join(dir, name))
			}
		}
	}
	return list
}
