package ours

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
)

// MakeImage returns the path of test/images' busybox, which it makes if need be.
func MakeImage(ctx context.Context, progress io.Writer) (string, error) {
	cmd := exec.CommandContext(ctx, "test/images/make", "busybox")
	cmd.Stderr = progress
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("test/images/make busybox: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Load runs a CLI's load command, Docker's or ours, and returns the reference
// of the one image in the archive.
func Load(cmd *exec.Cmd) (string, error) {
	out, err := Output(cmd)
	if err != nil {
		return "", err
	}
	// "Loaded image: NAME", or "Loaded image ID: sha256:…", as Docker says it.
	_, name, ok := strings.Cut(out, ": ")
	if !ok {
		return "", fmt.Errorf("%s load said %q", filepath.Base(cmd.Path), out)
	}
	return strings.Fields(name)[0], nil
}
