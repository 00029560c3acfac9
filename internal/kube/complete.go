package kube

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/pod"
)

// An ImageConfig is what an image says of the containers made from it.
type ImageConfig struct {
	Entrypoint, Cmd, Env  []string
	Dir, User, StopSignal string
}

// Complete returns the container's Spec with what its image adds, all but
// ImageID and Layers. It fails, with InvalidArgument, when there is nothing to run,
// and when the container must not run as root but the image's user may be root.
func (c *Container) Complete(img ImageConfig) (pod.Spec, error) {
	s := c.Spec
	s.Image = c.Image
	text := func(list []string) []string { return slices.Clone(list) }
	if s.Expand { // what the image says is not expanded
		text = func(list []string) []string {
			list = slices.Clone(list)
			for i := range list {
				list[i] = pod.EscapeRefs(list[i])
			}
			return list
		}
	}
	switch {
	case len(c.Command) > 0:
		s.Args = append(slices.Clone(c.Command), c.Args...)
	case len(c.Args) > 0:
		s.Args = append(text(img.Entrypoint), c.Args...)
	default:
		s.Args = append(text(img.Entrypoint), text(img.Cmd)...)
	}
	if len(s.Args) == 0 {
		return pod.Spec{}, c.invalid("neither the pod nor the image %s says what to run", c.Image)
	}
	s.Env = mergeEnv(text(img.Env), c.Spec.Env)
	if s.Dir == "" {
		s.Dir = img.Dir
	}
	if s.StopSignal == "" {
		s.StopSignal = img.StopSignal
	}
	fromImage := s.User == ""
	if fromImage {
		s.User = img.User
	}
	if c.nonRoot {
		if err := c.checkNonRoot(s.User, fromImage); err != nil {
			return pod.Spec{}, err
		}
	}
	if c.group != nil {
		user, _, _ := strings.Cut(s.User, ":")
		if user == "" {
			user = "0"
		}
		s.User = user + ":" + strconv.FormatInt(*c.group, 10)
	}
	return s, nil
}

func (c *Container) invalid(format string, a ...any) error {
	return fmt.Errorf("container %s: %s: %w", c.Name, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
}

// checkNonRoot refuses root, and names, which only the image's passwd file
// could tell from root.
func (c *Container) checkNonRoot(user string, fromImage bool) error {
	user, _, _ = strings.Cut(user, ":")
	whose := "runAsUser"
	if fromImage {
		whose = "the image's user"
	}
	n, err := strconv.ParseUint(user, 10, 32)
	switch {
	case user == "" || err == nil && n == 0 || user == "root":
		return c.invalid("runAsNonRoot, but %s is root", whose)
	case err != nil:
		return c.invalid("runAsNonRoot, but %s is %q, which may be root: give a number in runAsUser", whose, user)
	}
	return nil
}

// mergeEnv replaces variables of base by those of over.
func mergeEnv(base, over []string) []string {
	for _, e := range over {
		name, _, _ := strings.Cut(e, "=")
		i := slices.IndexFunc(base, func(b string) bool { return strings.HasPrefix(b, name+"=") })
		if i >= 0 {
			base[i] = e
		} else {
			base = append(base, e)
		}
	}
	return base
}
