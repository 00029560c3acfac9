package guestinit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hyper-run/hyper/internal/guest/wire"
	"github.com/hyper-run/hyper/internal/guestinit/inroot"
)

// An identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxAccounts bounds a container's /etc/passwd and /etc/group.
const maxAccounts = 4 << 20

// identify finds out who a process runs as: what the request names, looked up
// in the container, or the numbers in the process. As with Docker, who is not
// named is root with root's groups, and the main group is among the others.
func (s *Service) identify(root *inroot.Dir, p *specs.Process, r *wire.StartProcessRequest) (*identity, error) {
	passwd, err := accounts(root, "/etc/passwd")
	if err != nil {
		return nil, err
	}
	id := &identity{uid: p.User.UID, gid: p.User.GID, groups: p.User.AdditionalGids}
	if r.User == "" && len(r.AdditionalGroups) == 0 && (id.uid != 0 || id.gid != 0 || len(id.groups) > 0) {
		users, _ := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool { return u.Uid == int(id.uid) })
		if len(users) > 0 {
			id.home = users[0].Home
		}
		return id, nil
	}
	group, err := accounts(root, "/etc/group")
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*identity, error) {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	u, err := user.GetExecUser(r.User, &user.ExecUser{Uid: int(id.uid), Gid: int(id.gid), Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return fail(err)
	}
	more, err := user.GetAdditionalGroups(r.AdditionalGroups, reader(group))
	if err != nil {
		return fail(fmt.Errorf("unable to find additional groups %v: %w", r.AdditionalGroups, err))
	}
	id.uid, id.gid, id.home = uint32(u.Uid), uint32(u.Gid), u.Home
	for _, g := range slices.Concat([]int{u.Gid}, u.Sgids, more) {
		id.groups = append(id.groups, uint32(g))
	}
	slices.Sort(id.groups)
	id.groups = slices.Compact(id.groups)
	return id, nil
}

func reader(b []byte) io.Reader { return bytes.NewReader(b) }

// accounts reads an account file; there may be none.
func accounts(root *inroot.Dir, name string) ([]byte, error) {
	b, err := root.ReadFile(name, maxAccounts)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "look up user: %v", err)
	}
	return b, nil
}

// environment adds HOME where it is missing or empty, as runc does.
func (id *identity) environment(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return e == "HOME=" })
	for _, e := range env {
		if strings.HasPrefix(e, "HOME=") {
			return env
		}
	}
	home := id.home
	if home == "" {
		home = "/"
	}
	return append(env, "HOME="+home)
}
