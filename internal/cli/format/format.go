// Package format prints what commands list: tables, Go templates and JSON,
// as the --format flag of Docker's commands does.
package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
)

// A Row is one line of a list: the fields that templates name, and their
// values. Values are strings, [Labels] or nil.
type Row map[string]any

// Label is what templates call for the value of one label.
func (r Row) Label(name string) string {
	if l, ok := r["Labels"].(Labels); ok {
		return l[name]
	}
	// The row of headers.
	i := strings.LastIndexByte(name, '.')
	return strings.NewReplacer("-", " ", "_", " ").Replace(name[i+1:])
}

// MarshalJSON escapes <, > and & as Docker does for a whole row, and only there.
func (r Row) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]any(r)) }

// Labels print as name=value,… in order.
type Labels map[string]string

// String implements fmt.Stringer.
func (l Labels) String() string {
	out := make([]string, 0, len(l))
	for _, k := range slices.Sorted(maps.Keys(l)) {
		out = append(out, k+"="+l[k])
	}
	return strings.Join(out, ",")
}

// MarshalText makes labels a string in JSON, as every other field is.
func (l Labels) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// A Table describes a kind of list.
type Table struct {
	Columns string // template of the default table, without the word "table"
	Headers Row    // field → header; every field is here
}

// Uses says whether printing with a --format value reads a field.
func (t Table) Uses(format, field string) bool {
	switch format {
	case "", "table":
		return strings.Contains(t.Columns, "."+field)
	case "json":
		return true
	}
	return strings.Contains(format, "."+field) || strings.Contains(format, "json .}}")
}

// Write prints rows as format says: "" and "table" the default table,
// "table TEMPLATE" a table of other columns, "json" a JSON object per row,
// anything else a template per row.
func (t Table) Write(w io.Writer, format string, rows []Row) error {
	text, isTable := t.template(format)
	tmpl, err := Parse(text)
	if err != nil {
		return err
	}
	tmpl.Option(strict)
	// A field that does not exist is an error also when there are no rows.
	if err := execute(headerTemplate(tmpl), io.Discard, t.Headers); err != nil {
		return err
	}
	var buf bytes.Buffer
	if isTable {
		if err := execute(headerTemplate(tmpl), &buf, t.Headers); err != nil {
			return err
		}
		buf.WriteByte('\n')
	}
	for _, r := range rows {
		if err := execute(tmpl, &buf, r); err != nil {
			return err
		}
		buf.WriteByte('\n')
	}
	if !isTable {
		_, err := buf.WriteTo(w)
		return err
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if _, err := buf.WriteTo(tw); err != nil {
		return err
	}
	return tw.Flush()
}

func (t Table) template(format string) (text string, isTable bool) {
	switch format {
	case "", "table":
		return t.Columns, true
	case "json":
		return "{{json .}}", false
	}
	if rest, ok := strings.CutPrefix(format, "table"); ok {
		return unescape(strings.Trim(rest, " ")), true
	}
	return unescape(strings.Trim(format, " ")), false
}

// unescape makes the tabs and line ends that shells leave as \t and \n.
func unescape(s string) string {
	return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s)
}

// strict makes it an error to name what a map doesn't have. It is for maps
// that stand for a struct.
const strict = "missingkey=error"

// Parse makes a template with Docker's functions: json, split, join, title,
// lower, upper, pad, truncate.
func Parse(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(functions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

// Value prints one value with a template; "json" stands for all of it. A key
// that a map in the value doesn't have prints as <no value>, as Docker has it
// for labels and attributes; it is an error when the value itself is a map.
func Value(w io.Writer, text string, v any) error {
	if text == "json" {
		text = "{{json .}}"
	}
	t, err := Parse(text)
	if err != nil {
		return err
	}
	if reflect.ValueOf(v).Kind() == reflect.Map {
		t.Option(strict)
	}
	var buf bytes.Buffer
	if err := execute(t, &buf, v); err != nil {
		return err
	}
	buf.WriteByte('\n')
	_, err = buf.WriteTo(w)
	return err
}

func execute(t *template.Template, w io.Writer, v any) error {
	err := t.Execute(w, v)
	var ee template.ExecError
	if errors.As(err, &ee) {
		return fmt.Errorf("--format: %w", ee.Err)
	}
	return err
}

var functions = template.FuncMap{
	"json": toJSON, "split": strings.Split, "join": join, "title": title,
	"lower": strings.ToLower, "upper": strings.ToUpper, "pad": pad, "truncate": truncate,
}

// headerTemplate is t with functions that leave headers as they are, so that
// {{upper .Names}} keeps its column's name.
func headerTemplate(t *template.Template) *template.Template {
	same := func(s string) string { return s }
	c, err := t.Clone()
	if err != nil { // only after an Execute of html/template
		panic(err)
	}
	return c.Funcs(template.FuncMap{
		"json": func(v any) string { return fmt.Sprint(v) }, "title": same, "lower": same, "upper": same,
		"split": func(s, _ string) string { return s }, "join": func(s, _ string) string { return s },
		"truncate": func(s string, _ int) string { return s },
	})
}

func toJSON(v any) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(buf.String()), nil
}

func join(list any, sep string) (string, error) {
	var parts []string
	switch v := reflect.ValueOf(list); v.Kind() {
	case reflect.Invalid:
	case reflect.Array, reflect.Slice:
		for i := range v.Len() {
			parts = append(parts, fmt.Sprint(v.Index(i).Interface()))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			parts = append(parts, fmt.Sprint(v.MapIndex(k).Interface()))
		}
		slices.Sort(parts)
	default:
		return "", fmt.Errorf("join needs a list, not %T", list)
	}
	return strings.Join(parts, sep), nil
}

func title(s string) string {
	words := strings.SplitAfter(s, " ")
	for i, w := range words {
		if w != "" {
			words[i] = strings.ToUpper(w[:1]) + w[1:]
		}
	}
	return strings.Join(words, "")
}

func pad(v any, before, after int) string {
	s := fmt.Sprint(v)
	if s == "" {
		return ""
	}
	return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
}

func truncate(s string, n int) string {
	if n < 0 || len(s) < n {
		return s
	}
	return s[:n]
}
