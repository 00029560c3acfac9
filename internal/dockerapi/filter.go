package dockerapi

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

// filters are the terms of a "filters" parameter and the values of each. A
// term matches when one of its values does; labels must all match.
type filters map[string][]string

// filters parses the parameter, of which only the terms in known may be given.
func (c *call) filters(known ...string) (filters, error) {
	s := c.form.Get("filters")
	if s == "" {
		return nil, nil
	}
	f := filters{}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &sets); err == nil {
		for term, values := range sets {
			f[term] = []string{}
			for v := range values {
				f[term] = append(f[term], v)
			}
			slices.Sort(f[term])
		}
	} else if err := json.Unmarshal([]byte(s), (*map[string][]string)(&f)); err != nil {
		return nil, invalid("invalid filter")
	}
	for term := range f {
		if !slices.Contains(known, term) {
			return nil, invalid("invalid filter '%s'", term)
		}
	}
	return f, nil
}

func (f filters) has(term string) bool { return len(f[term]) > 0 }

// exact matches when term is not given or s is one of its values.
func (f filters) exact(term, s string) bool { return !f.has(term) || slices.Contains(f[term], s) }

// prefix is exact, or one of the values begins s.
func (f filters) prefix(term, s string) bool {
	return !f.has(term) || slices.ContainsFunc(f[term], func(v string) bool { return strings.HasPrefix(s, v) })
}

// pattern is exact, or one of the values is a regular expression found in s.
func (f filters) pattern(term, s string) bool {
	return f.exact(term, s) || slices.ContainsFunc(f[term], func(v string) bool {
		re, err := regexp.Compile(v)
		return err == nil && re.MatchString(s)
	})
}

// labels matches when every value of term, "key" or "key=value", is in m.
func (f filters) labels(term string, m map[string]string) bool {
	for _, want := range f[term] {
		key, value, hasValue := strings.Cut(want, "=")
		got, ok := m[key]
		if !ok || hasValue && got != value {
			return false
		}
	}
	return true
}

// notLabels matches when term is not given or not all its values are in m.
func (f filters) notLabels(term string, m map[string]string) bool {
	return !f.has(term) || !f.labels(term, m)
}

// boolean reads a term that is true or false.
func (f filters) boolean(term string, unset bool) (bool, error) {
	if !f.has(term) {
		return unset, nil
	}
	yes := slices.Contains(f[term], "true") || slices.Contains(f[term], "1")
	no := slices.Contains(f[term], "false") || slices.Contains(f[term], "0")
	if yes == no {
		return false, invalid("invalid filter '%s=%v'", term, f[term])
	}
	return yes, nil
}

// until reads the term of that name: a duration back from now, a Unix
// timestamp, or RFC 3339. Zero when it is not given.
func (f filters) until(now time.Time) (time.Time, error) {
	if !f.has("until") {
		return time.Time{}, nil
	}
	if len(f["until"]) > 1 {
		return time.Time{}, invalid("more than one until filter specified")
	}
	s := f["until"][0]
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if t, err := parseTimestamp(s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, invalid("invalid filter 'until=%s'", s)
}
