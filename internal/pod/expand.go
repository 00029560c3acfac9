package pod

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// MaxExpanded is how long an argument or variable can get: the kernel executes
// nothing with a longer one (MAX_ARG_STRLEN).
const MaxExpanded = 128<<10 - 1

// Expand replaces references $(NAME) by what known says, as Kubernetes does:
// "$$" is one "$", a reference to what is not known stays as it is, and so does a
// "$" before anything else.
func Expand(s string, known func(name string) (value string, ok bool)) (string, error) {
	return expand(s, "$", known)
}

// ExpandEarly does the same where some values come later: its result, and what
// known returns, are to be expanded once more. Known returns "$(NAME)" for those.
func ExpandEarly(s string, known func(name string) (value string, ok bool)) (string, error) {
	return expand(s, "$$", known)
}

// EscapeRefs returns what Expand makes s of.
func EscapeRefs(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// expand writes each "$" that is no reference as dollar.
func expand(s, dollar string, known func(string) (string, bool)) (string, error) {
	var b strings.Builder
	closed := true // there may be a ")" ahead
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			b.WriteString(s)
			s = ""
		} else {
			b.WriteString(s[:i])
			s = s[i+1:]
		}
		if b.Len() > MaxExpanded {
			return "", fmt.Errorf("it is longer than %d bytes once its variables are replaced: %w", MaxExpanded, errdefs.ErrInvalidArgument)
		}
		if i < 0 {
			return b.String(), nil
		}
		end := -1
		if closed && strings.HasPrefix(s, "(") {
			end = strings.IndexByte(s, ')')
			closed = end >= 0
		}
		switch {
		case strings.HasPrefix(s, "$"):
			b.WriteString(dollar)
			s = s[1:]
		case end < 0:
			b.WriteString(dollar)
		default:
			value, ok := known(s[1:end])
			if !ok {
				value = dollar + strings.ReplaceAll(s[:end+1], "$", dollar)
			}
			b.WriteString(value)
			s = s[end+1:]
		}
	}
}
