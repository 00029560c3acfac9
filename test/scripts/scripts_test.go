// Package scripts drives the hyper command against a real hyperd whose VMs
// are fakes: containers run as processes of this machine. It needs no root,
// no QEMU and no kernel.
package scripts

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hyper-run/hyper/internal/cli"
	"github.com/hyper-run/hyper/internal/guest/guesttest"
	"github.com/hyper-run/hyper/internal/hyperd"
	"github.com/hyper-run/hyper/internal/network/networktest"
	"github.com/hyper-run/hyper/internal/pod"
	"github.com/hyper-run/hyper/internal/store"
	"github.com/hyper-run/hyper/internal/vmm"
	"github.com/hyper-run/hyper/internal/vmm/vmmtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"hyper": func() {
			os.Exit(cli.Main(context.Background(), cli.Config{Version: "test"}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: ".", Setup: setup})
}

// setup starts a hyperd for one script and loads its image.
func setup(env *testscript.Env) error {
	// Unix sockets have short paths; the script's directory is too deep.
	dir, err := os.MkdirTemp("", "hs")
	if err != nil {
		return err
	}
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		return err
	}
	layout := store.Layout{Root: dir + "/root", Run: dir + "/run"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var log bytes.Buffer
	go func() {
		done <- hyperd.Run(ctx, hyperd.Config{
			Version: "test", Layout: layout, MemMiB: 128, CPUs: 1, VMMemMiB: 1024, VMCPUs: 4, BootTimeout: 10 * time.Second,
		}, hyperd.Parts{
			Driver: &vmmtest.Fake{Guest: serveGuest}, Network: networktest.NewFake(), Log: &log,
			Boot: func(string) (pod.BootFiles, error) {
				return pod.BootFiles{Name: "fake 1", Kernel: kernel, Initrd: kernel}, nil
			},
		})
	}()
	env.Defer(func() {
		cancel()
		if err := <-done; err != nil {
			env.T().Log("hyperd: ", err, "\n", log.String())
		}
		os.RemoveAll(dir)
	})
	env.Setenv("HYPER_HOST", "unix://"+layout.Socket())
	env.Setenv("HOME", env.WorkDir)
	return loadBusybox(layout.Socket(), done)
}

func serveGuest(conn net.Conn, _ io.Writer, _ vmm.Config) vmm.Exit {
	g := guesttest.New()
	defer g.Close()
	g.Serve(conn) //nolint:errcheck // ends with the connection
	return vmm.Exit{Reason: vmm.ExitPowerOff}
}

// loadBusybox waits for hyperd and gives it an image to run.
func loadBusybox(socket string, done <-chan error) error {
	archive, err := busybox()
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		for {
			c, err := net.Dial("unix", socket)
			if err == nil {
				return c, nil
			}
			select {
			case err := <-done:
				return nil, err
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://hyperd/images/load?quiet=1", "application/x-tar", archive)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// busybox is an image in name: its programs are those of this machine.
func busybox() (io.Reader, error) {
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	tw.WriteHeader(&tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}) //nolint:errcheck // to memory
	tw.Close()                                                                    //nolint:errcheck // to memory
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux",
		Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=" + os.Getenv("PATH")}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(img)},
	})
	if err != nil {
		return nil, err
	}
	tag, err := name.NewTag("busybox:latest")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	return &out, tarball.Write(tag, img, &out)
}

func diffIDs(img v1.Image) []v1.Hash {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil
	}
	return cf.RootFS.DiffIDs
}
