package qmp

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// startQEMU starts the installed QEMU without a machine and returns a client.
func startQEMU(t *testing.T) *Client {
	t.Helper()
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	ours, theirs := pair(t)
	f, err := theirs.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "ringbuf,id=console,size=4096")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	f.Close()
	theirs.Close()
	c := New(ours, nil)
	t.Cleanup(c.Close)
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// schemaEntry is an element of query-qmp-schema (qapi/introspect.json).
type schemaEntry struct {
	Name    string
	Meta    string `json:"meta-type"`
	ArgType string `json:"arg-type"`
	Members []struct{ Name string }
}

// TestCommandsAreInQEMUsSchema keeps the commands of this package in step
// with the QEMU that is installed, whatever its version.
func TestCommandsAreInQEMUsSchema(t *testing.T) {
	c := startQEMU(t)
	var schema []schemaEntry
	if err := c.Execute(t.Context(), "query-qmp-schema", nil, &schema); err != nil {
		t.Fatal(err)
	}
	entries := make(map[string]schemaEntry)
	for _, e := range schema {
		entries[e.Name] = e
	}
	for name, args := range map[string]any{
		"qmp_capabilities":         nil,
		"stop":                     nil,
		"cont":                     nil,
		"query-status":             nil,
		"query-migrate":            nil,
		"query-fdsets":             nil,
		"ringbuf-read":             ringbufReadArgs{},
		"add-fd":                   addFDArgs{},
		"remove-fd":                addFDArgs{},
		"getfd":                    getFDArgs{},
		"migrate-set-capabilities": migrateSetCapabilitiesArgs{},
		"migrate":                  migrateArgs{},
		"migrate-incoming":         migrateArgs{},
		"blockdev-add":             nil, // its arguments depend on the driver
		"blockdev-reopen":          blockdevReopenArgs{},
		"blockdev-del":             blockdevDelArgs{},
		"query-named-block-nodes":  queryNodesArgs{},
		"device_add":               nil, // they depend on the driver
		"device_del":               deviceDelArgs{},
		"qom-list":                 qomListArgs{},
	} {
		cmd, ok := entries[name]
		if !ok || cmd.Meta != "command" {
			t.Errorf("QEMU %s has no command %s", c.Version, name)
			continue
		}
		known := make(map[string]bool)
		for _, m := range entries[cmd.ArgType].Members {
			known[m.Name] = true
		}
		if args == nil {
			continue
		}
		for i := range reflect.TypeOf(args).NumField() {
			arg, _, _ := strings.Cut(reflect.TypeOf(args).Field(i).Tag.Get("json"), ",")
			if !known[arg] {
				t.Errorf("QEMU %s: %s has no argument %s", c.Version, name, arg)
			}
		}
	}
	for _, name := range []string{"SHUTDOWN", "GUEST_PANICKED", "STOP", "RESUME", "MIGRATION", "DEVICE_DELETED"} {
		if entries[name].Meta != "event" {
			t.Errorf("QEMU %s has no event %s", c.Version, name)
		}
	}
}

func TestRealQEMU(t *testing.T) {
	c := startQEMU(t)
	if c.Version.Major < 7 {
		t.Errorf("version %s", c.Version)
	}
	if data, err := c.RingbufRead(t.Context(), "console", 4096); err != nil || len(data) != 0 {
		t.Errorf("empty ring buffer: %q, %v", data, err)
	}
	if _, err := c.QueryStatus(t.Context()); err != nil {
		t.Error(err)
	}

	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.AddFD(t.Context(), f, 7).Wait(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "content" {
		t.Errorf("our descriptor afterwards: %q, %v", b, err)
	}
	if sets, err := c.FDSets(t.Context()); err != nil || len(sets) != 1 || sets[0] != 7 {
		t.Errorf("query-fdsets: %v, %v", sets, err)
	}
}
