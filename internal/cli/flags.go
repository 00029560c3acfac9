package cli

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	moby "github.com/moby/moby/client"
	"github.com/spf13/pflag"
)

const formatHelp = `Format output using a custom template:
'table':            Print output in table format with column headers (default)
'table TEMPLATE':   Print output in table format using the given Go template
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template`

const valueFormatHelp = `Format output using a custom template:
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template`

// addFormat declares --format of a list.
func addFormat(fs *pflag.FlagSet, to *string) {
	fs.StringVar(to, "format", "", formatHelp)
}

// addValueFormat declares --format of something that is not a list.
func addValueFormat(fs *pflag.FlagSet, to *string) {
	fs.StringVarP(to, "format", "f", "", valueFormatHelp)
}

// addFilter declares --filter.
func addFilter(fs *pflag.FlagSet, to moby.Filters) {
	fs.VarP(filterValue(to), "filter", "f", "Filter output based on conditions provided")
}

// filterValue is a flag of NAME=VALUE conditions.
type filterValue moby.Filters

func (f filterValue) Set(s string) error {
	if s == "" {
		return nil
	}
	name, value, ok := strings.Cut(s, "=")
	if !ok || strings.ContainsFunc(strings.TrimSpace(name), unicode.IsSpace) {
		return fmt.Errorf("invalid filter '%s': must be NAME=VALUE", s)
	}
	moby.Filters(f).Add(strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value))
	return nil
}

func (f filterValue) Type() string   { return "filter" }
func (f filterValue) String() string { return "" }

// pointInTime makes of an age, as --since and --until take it, the time that
// it means. The client of the API would cut that to seconds, and --until 0s so
// leave out what has happened in the last one.
func pointInTime(s string) string {
	age, err := time.ParseDuration(s)
	if err != nil || s == "0" {
		return s
	}
	return time.Now().Add(-age).UTC().Format("2006-01-02T15:04:05.000000000Z07:00")
}
