package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/internal/cli/format"
)

// An object is what inspect shows: the API's type of it, and the bytes that
// the daemon sent, which may hold more.
type object struct {
	value any
	raw   json.RawMessage
}

type inspectFlags struct {
	format, kind string
	size         bool
}

func newInspect(a *app) *cobra.Command {
	c := command("inspect [OPTIONS] NAME|ID [NAME|ID...]", "Return low-level information on containers and images", args(1, -1))
	var f inspectFlags
	addValueFormat(c.Flags(), &f.format)
	c.Flags().BoolVarP(&f.size, "size", "s", false, "Display total file sizes if the type is container")
	c.Flags().StringVar(&f.kind, "type", "", "Only inspect objects of the given type (container, image)")
	c.ValidArgsFunction = a.completeContainers(-1, anyState)
	c.RunE = run(func(ctx context.Context, args []string) error { return a.inspect(ctx, f, args) })
	return c
}

// newInspectOf is the inspect of a management command.
func newInspectOf(a *app, kind, use, short string) *cobra.Command {
	c := command(use, short, args(1, -1))
	f := inspectFlags{kind: kind}
	addValueFormat(c.Flags(), &f.format)
	c.ValidArgsFunction = a.completeImages(-1)
	if kind == "container" {
		c.Flags().BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
		c.ValidArgsFunction = a.completeContainers(-1, anyState)
	}
	c.RunE = run(func(ctx context.Context, args []string) error { return a.inspect(ctx, f, args) })
	return c
}

func (a *app) inspect(ctx context.Context, f inspectFlags, names []string) error {
	switch f.kind {
	case "", "container", "image":
	default:
		return cannot(fmt.Errorf("--type %q: must be one of \"container\", \"image\"", f.kind), "inspect")
	}
	var errs []error
	var raws []json.RawMessage
	for _, name := range names {
		o, err := a.lookUp(ctx, f, name)
		if err == nil && f.format != "" && f.format != "json" {
			err = a.printObject(o, f.format)
		}
		if err != nil {
			errs = append(errs, cannot(err, "inspect %s", name))
			continue
		}
		raws = append(raws, o.raw)
	}
	if f.format == "" || f.format == "json" {
		if err := a.printRaw(raws, f.format == ""); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lookUp finds a container or an image, in this order.
func (a *app) lookUp(ctx context.Context, f inspectFlags, name string) (object, error) {
	if f.kind != "image" {
		res, err := a.api().ContainerInspect(ctx, name, moby.ContainerInspectOptions{Size: f.size})
		if err == nil {
			return object{res.Container, res.Raw}, nil
		}
		if f.kind == "container" || !errdefs.IsNotFound(err) {
			return object{}, err
		}
	}
	var raw bytes.Buffer
	res, err := a.api().ImageInspect(ctx, name, moby.ImageInspectWithRawResponse(&raw))
	if f.kind == "" && (errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)) {
		return object{}, fmt.Errorf("no such object: %s", name)
	}
	return object{res.InspectResponse, raw.Bytes()}, err
}

// printObject falls back to what the daemon sent when a template names
// something that the API's type doesn't have.
func (a *app) printObject(o object, text string) error {
	err := format.Value(a.out, text, o.value)
	if err == nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(o.raw))
	dec.UseNumber()
	var v any
	if json := dec.Decode(&v); json != nil {
		return err
	}
	return format.Value(a.out, text, v)
}

func (a *app) printRaw(raws []json.RawMessage, indent bool) error {
	if raws == nil {
		raws = []json.RawMessage{}
	}
	var buf bytes.Buffer
	all := append(append([]byte{'['}, bytes.Join(rawBytes(raws), []byte{','})...), ']')
	err := json.Compact(&buf, all)
	if indent {
		buf.Reset()
		err = json.Indent(&buf, all, "", "    ")
	}
	if err != nil {
		return fmt.Errorf("answer of the daemon: %w", err)
	}
	buf.WriteByte('\n')
	_, err = buf.WriteTo(a.out)
	return err
}

func rawBytes(raws []json.RawMessage) [][]byte {
	out := make([][]byte, len(raws))
	for i, r := range raws {
		out[i] = r
	}
	return out
}
