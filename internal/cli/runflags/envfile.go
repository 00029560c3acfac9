package runflags

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ReadEnv is the environment that --env-file and -e make: first the files in
// order, then values. Names without a value take it from hyper's own
// environment; in a file they are left out when they have none there.
func ReadEnv(files, values []string) ([]string, error) {
	return readAll(files, values, os.LookupEnv)
}

func readAll(files, values []string, lookup func(string) (string, bool)) ([]string, error) {
	out := []string{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		lines, err := parseFile(f, lookup)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, lines...)
	}
	return append(out, values...), nil
}

// parseFile reads NAME=VALUE lines. Lines that are empty or start with # are
// skipped, space before a name is not part of it, everything after = is.
func parseFile(r io.Reader, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // longer values do not fit in an exec either
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		if !utf8.ValidString(line) {
			return nil, fmt.Errorf("line %d is not UTF-8", n)
		}
		if n == 1 {
			line = strings.TrimPrefix(line, "\uFEFF")
		}
		line = strings.TrimLeftFunc(line, unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, hasValue := strings.Cut(line, "=")
		switch {
		case name == "":
			return nil, fmt.Errorf("line %d: no variable name on line '%s'", n, line)
		case strings.ContainsAny(name, " \t"):
			return nil, fmt.Errorf("line %d: variable '%s' contains whitespaces", n, name)
		case hasValue:
			out = append(out, line)
		case lookup != nil:
			if v, ok := lookup(name); ok {
				out = append(out, name+"="+v)
			}
		default:
			out = append(out, name)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return out, nil
}
