package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/hyper-run/hyper/internal/network"
)

// cgroups limit what a VM takes of the host. Version 1, 2 and both at once
// will do.
func (o *Options) cgroups(context.Context) []Result {
	r := Result{Name: "cgroups"}
	mounts, err := o.read("/proc/mounts")
	if err != nil {
		r.Status, r.Detail, r.Fix = Warn, err.Error(), "mount -t proc proc /proc"
		return []Result{r}
	}
	have := map[string]bool{} // controllers
	v1, v2 := false, false
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		switch f[2] {
		case "cgroup2":
			v2 = true
			list, _ := o.read(filepath.Join(f[1], "cgroup.controllers"))
			for _, c := range strings.Fields(list) {
				have[c] = true
			}
		case "cgroup":
			v1 = true
			for _, c := range strings.Split(f[3], ",") {
				have[c] = true
			}
		}
	}
	var missing []string
	for _, c := range []string{"cpu", "memory"} {
		if !have[c] {
			missing = append(missing, c)
		}
	}
	switch {
	case v1 && v2:
		r.Detail = "version 1 and 2 (hybrid)"
	case v1:
		r.Detail = "version 1"
	case v2:
		r.Detail = "version 2"
	}
	switch {
	case !v1 && !v2:
		r.Status, r.Detail, r.Fix = Warn, "not mounted; pods are not limited on the host", "mount -t cgroup2 none /sys/fs/cgroup"
	case len(missing) > 0:
		r.Status = Warn
		r.Detail += " without " + strings.Join(missing, " and ") + "; pods are not limited by it on the host"
		r.Fix = "add cgroup_enable=" + strings.Join(missing, ",") + " to GRUB_CMDLINE_LINUX in /etc/default/grub, update-grub, reboot"
	default:
		r.Status = OK
	}
	return []Result{r}
}

// needed are the modules that networks of pods need where they are not built
// into the kernel; most load by themselves.
var needed = []string{"tun", "bridge", "nf_tables", "nft_ct", "nft_masq", "nft_redir", "nft_reject_inet"}

func (o *Options) modules(context.Context) []Result {
	r := Result{Name: "kernel modules", Status: OK}
	release, err := o.read("/proc/sys/kernel/osrelease")
	if err != nil {
		r.Status, r.Detail, r.Fix = Warn, err.Error(), "mount -t proc proc /proc"
		return []Result{r}
	}
	dir := filepath.Join("/lib/modules", release)
	if !o.exists(dir) {
		others, _ := os.ReadDir(o.path("/lib/modules"))
		if len(others) == 0 {
			r.Detail = "kernel " + release + " has none; what it can do is built in"
			return []Result{r}
		}
		r.Status, r.Detail = Warn, "those of the running kernel "+release+" are gone: it was upgraded"
		r.Fix = "reboot"
		return []Result{r}
	}
	builtin, _ := o.read(filepath.Join(dir, "modules.builtin"))
	loadable, _ := o.read(filepath.Join(dir, "modules.dep"))
	var missing []string
	for _, m := range needed {
		if !strings.Contains(builtin, "/"+m+".ko") && !strings.Contains(loadable, "/"+m+".ko") && !o.exists("/sys/module/"+m) {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		r.Status, r.Detail = Warn, "not there: "+strings.Join(missing, ", ")
		r.Fix = "apt-get install --reinstall linux-image-" + release
		return []Result{r}
	}
	r.Detail = "of kernel " + release
	return []Result{r}
}

func (o *Options) tun(context.Context) []Result {
	r := Result{Name: "tun", Status: OK, Detail: "/dev/net/tun"}
	f, err := os.OpenFile(o.path("/dev/net/tun"), os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return []Result{r}
	}
	r.Status, r.Detail = Fail, err.Error()
	switch {
	case errors.Is(err, os.ErrPermission):
		r.Fix = "run as root"
	case o.exists("/sys/module/tun") || o.exists("/sys/class/misc/tun"):
		r.Fix = "mkdir -p /dev/net && mknod /dev/net/tun c 10 200"
	default:
		r.Fix = "modprobe tun"
	}
	return []Result{r}
}

func (o *Options) network(context.Context) []Result {
	if o.Network == nil {
		return nil
	}
	r := Result{Name: "nftables", Status: OK, Detail: "rules can be written"}
	if err := o.Network(); err != nil {
		r.Status, r.Detail, r.Fix = Fail, err.Error(), "modprobe nf_tables"
		var u *network.UnavailableError
		if errors.As(err, &u) {
			r.Detail, r.Fix = u.Err.Error(), u.Fix
		}
	}
	return []Result{r}
}

// forwarding is turned on by hyperd; off while the bridge is there means
// that somebody turned it off again.
func (o *Options) forwarding(context.Context) []Result {
	r := Result{Name: "forwarding", Status: OK, Detail: "on"}
	v, err := o.read("/proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		r.Status, r.Detail, r.Fix = Fail, err.Error(), "mount -t proc proc /proc"
	case v == "1":
	case o.exists("/sys/class/net/" + o.Bridge):
		r.Status, r.Detail = Fail, "net.ipv4.ip_forward was turned off after hyperd had turned it on"
		r.Fix = "sysctl -w net.ipv4.ip_forward=1, and look for it in /etc/sysctl.conf and /etc/sysctl.d"
	default:
		r.Detail = "off; hyperd turns it on when it starts"
	}
	return []Result{r}
}

func (o *Options) firewalls(context.Context) []Result {
	if o.Blockers == nil {
		return nil
	}
	blockers, err := o.Blockers()
	if err != nil {
		r := Result{"firewall", Warn, err.Error(), "run as root"}
		var u *network.UnavailableError
		if errors.As(err, &u) {
			r.Detail, r.Fix = u.Err.Error(), u.Fix
		}
		return []Result{r}
	}
	if len(blockers) == 0 {
		return []Result{{Name: "firewall", Status: OK, Detail: "no other stands in the way of pods"}}
	}
	var all []Result
	for _, b := range blockers {
		all = append(all, Result{"firewall", Fail, b.Where + " drops what pods send or receive", b.Fix})
	}
	return all
}
