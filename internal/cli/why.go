package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-run/hyper/api"
	"github.com/hyper-run/hyper/internal/cli/format"
)

func newWhy(a *app) *cobra.Command {
	c := command("why [OPTIONS] CONTAINER|POD", "Say why a container or a pod is not running", args(1, 1))
	c.Long = "Prints how it ended, what is known of that, and the last lines of its log and of its VM's console.\n\n  hyper why web"
	var text string
	addValueFormat(c.Flags(), &text)
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
		names, d := a.completeContainers(1, anyState)(cmd, args, to)
		pods, _ := a.completePods(1, anyPod)(cmd, args, to)
		return append(names, pods...), d
	}
	c.RunE = run(func(ctx context.Context, args []string) error {
		w, err := a.api().Why(ctx, args[0])
		switch {
		case err != nil:
		case text == "":
			return writeWhy(a.out, w)
		default:
			err = format.Value(a.out, text, w)
		}
		return cannot(err, "say why %s is not running", args[0])
	})
	return c
}

// writeWhy prints for people: what and when, the sentence, and all there is.
func writeWhy(out io.Writer, w api.Why) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s (%s): %s", w.What, w.Name, format.ShortID(w.ID), w.Cause)
	if !w.At.IsZero() {
		fmt.Fprintf(&b, ", %s", format.Ago(w.At))
	}
	fmt.Fprintf(&b, "\n%s\n", w.Summary)
	for _, s := range []struct{ title, text string }{
		{"Stage of the start", w.Stage},
		{"Details", w.Detail},
		{"Last lines of its log", strings.Join(w.Log, "\n")},
		{"Last lines of the VM's console", w.Console},
		{"Last lines of the VMM", w.Stderr},
	} {
		text := strings.TrimRight(s.text, "\n")
		if text == "" {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n", s.title)
		for line := range strings.SplitSeq(text, "\n") {
			fmt.Fprintf(&b, "  %s\n", strings.TrimRight(line, "\r\n"))
		}
	}
	_, err := b.WriteTo(out)
	return err
}
