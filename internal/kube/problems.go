package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// maxProblems is how many are told.
const maxProblems = 20

// problems are what is wrong with a file. As an error it has a line for each.
type problems struct {
	file string
	list []problem
	more int
}

type problem struct {
	line int
	text string
}

func (p *problems) any() bool { return len(p.list) > 0 }

func (p *problems) add(line int, path, format string, a ...any) {
	if len(p.list) == maxProblems {
		p.more++
		return
	}
	p.list = append(p.list, problem{line, at(p.file, line, path, fmt.Sprintf(format, a...))})
}

// at is a message with its place; line 0 is none.
func at(file string, line int, path, text string) string {
	where := file
	if line > 0 {
		where = fmt.Sprintf("%s:%d", file, line)
	}
	if path != "" {
		where += ": " + path
	}
	return where + ": " + text
}

func (p *problems) Error() string {
	sorted := slices.SortedFunc(slices.Values(p.list), func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.text, b.text))
	})
	lines := make([]string, 0, len(sorted)+1)
	for _, e := range sorted {
		lines = append(lines, e.text)
	}
	if p.more > 0 {
		lines = append(lines, fmt.Sprintf("%s: and %d more", p.file, p.more))
	}
	return strings.Join(lines, "\n")
}

func (p *problems) Unwrap() error { return errdefs.ErrInvalidArgument }
