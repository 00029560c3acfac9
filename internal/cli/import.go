package cli

import (
	"context"
	"os"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

func newImport(a *app) *cobra.Command {
	c := command("import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]", "Import the contents from a tarball to create a filesystem image", args(1, 2),
		"hyper image import", "hyper import")
	var o moby.ImageImportOptions
	var platform string
	c.Flags().StringArrayVarP(&o.Changes, "change", "c", nil, "Apply Dockerfile instruction to the created image")
	c.Flags().StringVarP(&o.Message, "message", "m", "", "Set commit message for imported image")
	c.Flags().StringVar(&platform, "platform", "", "Set platform if server is multi-platform capable")
	c.RunE = run(func(ctx context.Context, args []string) error {
		p, err := parsePlatform(platform)
		if err != nil {
			return cannot(err, "import %s", args[0])
		}
		if p != nil {
			o.Platform = *p
		}
		ref := ""
		if len(args) > 1 {
			ref = args[1]
		}
		return cannot(a.importImage(ctx, args[0], ref, o), "import %s", args[0])
	})
	return c
}

func (a *app) importImage(ctx context.Context, source, ref string, o moby.ImageImportOptions) error {
	src := moby.ImageImportSource{SourceName: source}
	switch {
	case source == "-":
		src.Source = a.in
	case strings.HasPrefix(source, "http://"), strings.HasPrefix(source, "https://"): // the daemon fetches it
	default:
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer f.Close()
		src = moby.ImageImportSource{Source: f, SourceName: "-"}
	}
	res, err := a.api().ImageImport(ctx, src, ref, o)
	if err != nil {
		return err
	}
	defer res.Close()
	return jsonmessage.DisplayStream(res, a.out)
}
