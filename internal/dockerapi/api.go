// Package dockerapi is the edge that speaks Docker's Engine API, versions 1.24
// to 1.56, with the types of github.com/moby/moby/api. It decodes a request,
// calls pods or images, and encodes the answer; it decides nothing and keeps
// no state. What a create request asked for travels in pod.Spec.Edge and comes
// back in inspect.
//
// Every field of a create request is honoured, has no effect in a virtual
// machine, or is refused by name: fields.go lists them all.
//
// It owns no goroutine beyond those of a request: one that reads a hijacked
// connection and one that watches it for the client's leaving. All end with
// the request.
package dockerapi

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/hyper-run/hyper/internal/event"
	"github.com/hyper-run/hyper/internal/image"
	"github.com/hyper-run/hyper/internal/logs"
	"github.com/hyper-run/hyper/internal/pod"
)

// API versions served. The newest is that of the moby/api module in go.mod.
const (
	MinVersion = "1.24"
	MaxVersion = "1.56"

	minMinor = 24
	maxMinor = 56
)

// Containers is what this edge calls of pods.
type Containers interface {
	pod.Containers
	pod.Pods
	// Logs reads what a container printed, and says whether it has a terminal.
	Logs(ctx context.Context, ref string, o logs.ReadOptions) (records iter.Seq2[logs.Record, error], tty bool, err error)
}

// Images is what this edge calls of images. image.Store is one. A nameOrID is
// a reference in familiar form, an ID or a unique prefix of one.
type Images interface {
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Push(ctx context.Context, ref string, o image.PullOptions) error
	Load(ctx context.Context, r io.Reader, progress func(image.Progress)) ([]image.Image, error)
	Save(ctx context.Context, refs []string, w io.Writer) error
	Import(ctx context.Context, r io.Reader, ref string, changes []string, message string) (image.Image, error)
	Resolve(ctx context.Context, nameOrID string) (image.Image, error)
	List(ctx context.Context) ([]image.Image, error)
	Tag(ctx context.Context, src, ref string) error
	// Remove untags nameOrID, and deletes the image with its last name.
	Remove(ctx context.Context, nameOrID string, force bool, inUse image.InUse) ([]image.Removed, error)
	// Prune removes those that want of the images without a name, with all of
	// every image not in use.
	Prune(ctx context.Context, all bool, want func(*image.Image) bool, inUse image.InUse) ([]image.Removed, int64, error)
	// History is what made an image, the last step first.
	History(ctx context.Context, img *image.Image) ([]image.HistoryEntry, error)
}

// Info is what the daemon says about itself and its host.
type Info struct {
	ID, Name        string // of this host
	Version, Commit string // of Hyper
	BuildTime       string
	Root            string // directory of all state
	Started         time.Time
	Debug           bool

	KernelVersion   string // of the host
	OperatingSystem string // "Debian GNU/Linux 12 (bookworm)"
	OSVersion       string // "12"
	CPUs            int
	MemoryBytes     int64

	// Status is shown by info below the storage driver: accelerator, machine,
	// guest kernel and why they were chosen.
	Status [][2]string
	// Components are versions of the parts (QEMU, guest kernel, …), shown by version.
	Components []Component
	Warnings   []string

	Network Network
}

// A Component is a part with a version of its own.
type Component struct {
	Name, Version string
	Details       map[string]string
}

// Network describes the default network; zero when there is none.
type Network struct {
	Bridge   string         // host interface
	Subnets  []netip.Prefix // IPv4 first
	Gateways []netip.Addr   // one per subnet
	MTU      int
}

// Config says what an API is served from. All but Log is required.
type Config struct {
	Containers Containers
	Images     Images
	Events     *event.Bus
	Info       func() Info
	Log        *slog.Logger // nil: slog.Default
}

type api struct {
	Config
	server string // the Server header
}

// New returns the handler of the API. It hijacks connections, so it must be
// served over HTTP/1.1.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &api{c, "Hyper/" + c.Info().Version + " (linux)"}
}
