package bridge

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network"
)

const tunDevice = "/dev/net/tun"

// openTap opens the tap of that name and makes it when it is not there. It
// stays when the descriptor is closed (kernel: networking/tuntap.rst), but
// that with name "": it has a name of the kernel's choice.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, unavailable("open "+tunDevice, err, "modprobe tun")
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil && name != "" {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
	}
	if err != nil {
		unix.Close(fd)
		return nil, unavailable("make tap "+name, err, "modprobe tun")
	}
	// Only now may the runtime poll it: polling wants the device attached.
	return os.NewFile(uintptr(fd), tunDevice), nil
}

// drain drops the frames that wait to be read: those the bridge sent to all
// while the tap was nobody's.
func drain(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var b [128]byte // the rest of a frame is dropped
	var readErr error
	err = conn.Control(func(fd uintptr) {
		const most = 2000 // twice a tap's queue: somebody floods the bridge
		for range most {
			if _, readErr = unix.Read(int(fd), b[:]); readErr != nil {
				break
			}
		}
	})
	if errors.Is(readErr, unix.EAGAIN) {
		readErr = nil
	}
	return errors.Join(err, readErr)
}

// connectTap puts the tap on the bridge and brings it up, without an address
// of its own: the host shall not be spoken to on a port.
func connectTap(a network.Attachment, bridge int) error {
	// IFLA_AF_SPEC is applied after the flags of the same message, so up is
	// a second one.
	if err := setLink(a.Device, 0,
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(a.MTU))),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))),
		noLinkLocal(),
	); err != nil {
		return fmt.Errorf("put tap %s on the bridge: %w", a.Device, err)
	}
	if err := setLink(a.Device, unix.IFF_UP); err != nil {
		return fmt.Errorf("bring tap %s up: %w", a.Device, err)
	}
	return nil
}

func noLinkLocal() *nl.RtAttr {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	v6 := spec.AddRtAttr(unix.AF_INET6, nil)
	v6.AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(nl.IN6_ADDR_GEN_MODE_NONE))
	return spec
}

// setLink is one RTM_SETLINK for an interface found by its name.
func setLink(name string, flags uint32, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = flags, flags
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// deleteTap removes a tap; nil when there is none.
func deleteTap(name string) error {
	return deleteLink(name, "tuntap", "modprobe tun")
}

// deleteLink removes an interface if it is there and of the kind given.
func deleteLink(name, kind, fix string) error {
	link, err := netlink.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err == nil && link.Type() != kind {
		return fmt.Errorf("delete interface %s: it is no %s but a %s", name, kind, link.Type())
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return unavailable("delete interface "+name, err, fix)
	}
	return nil
}

func isNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// listTaps lists the taps whose name is wanted.
func listTaps(wanted func(name string) bool) ([]string, error) {
	links, err := linkList()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		if l.Type() == "tuntap" && wanted(l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// linkList lists all interfaces. A dump that others' changes interrupted is
// not complete and taken again.
func linkList() ([]netlink.Link, error) {
	var links []netlink.Link
	var err error
	for range 10 {
		links, err = netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}
