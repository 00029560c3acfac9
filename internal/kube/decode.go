package kube

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

// A document is one object of a file.
type document struct {
	r      *reader
	object any
	pos    map[string]int // lines of its values by path
	prefix string         // before its paths, in messages
}

// problem tells what is wrong with the value at a path. Its line is that
// of the value, or of the closest that is around where it should be.
func (d *document) problem(path, format string, a ...any) {
	d.r.problems.add(d.line(path), d.prefix+path, format, a...)
}

func (d *document) warn(path, format string, a ...any) {
	if w := at(d.r.o.File, d.line(path), d.prefix+path, fmt.Sprintf(format, a...)); !slices.Contains(d.r.warnings, w) {
		d.r.warnings = append(d.r.warnings, w)
	}
}

func (d *document) line(path string) int {
	for {
		if line, ok := d.pos[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

func (d *document) decodeObject(n *yaml.Node) {
	d.decode(n, reflect.ValueOf(d.object).Elem(), "", 0)
}

// decode puts a node into v, and tells what does not fit.
func (d *document) decode(n *yaml.Node, v reflect.Value, path string, depth int) {
	if _, ok := d.pos[path]; !ok {
		d.pos[path] = n.Line
	}
	if !d.spend(1, path) {
		return
	}
	if depth > maxDepth {
		d.problem(path, "is nested too deep")
		return
	}
	n = follow(n)
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return // as if it was not there
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		d.decodeText(n, u, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		d.decode(n, p.Elem(), path, depth+1)
		v.Set(p)
	case reflect.Struct:
		d.decodeStruct(n, v, path, depth)
	case reflect.Map:
		d.decodeMap(n, v, path, depth)
	case reflect.Slice:
		d.decodeSlice(n, v, path, depth)
	default:
		d.decodeScalar(n, v, path)
	}
}

// spend says whether so many more values may be looked at. Aliases make a
// small text a large file.
func (d *document) spend(n int, path string) bool {
	ok := d.r.nodes >= 0
	if d.r.nodes -= n; ok && d.r.nodes < 0 {
		d.problem(path, "the file has more than %d values", maxNodes)
	}
	return d.r.nodes >= 0
}

// An entry is a key and its value.
type entry struct{ key, value *yaml.Node }

// entries are a mapping's, with those it merges (<<) that it does not have itself.
func (d *document) entries(n *yaml.Node, path string) []entry {
	if n.Kind != yaml.MappingNode {
		d.problem(path, "an object is needed, not %s", kindOf(n))
		return nil
	}
	if !d.spend(len(n.Content)/2, path) {
		return nil
	}
	var own, merged []entry
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := follow(n.Content[i])
		if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
			merged = append(merged, d.merged(n.Content[i+1], path)...)
			continue
		}
		if k.Kind != yaml.ScalarNode || !slices.Contains([]string{"!!str", "!!int", "!!float", "!!timestamp"}, k.ShortTag()) || yaml11Bool(k) {
			d.r.problems.add(k.Line, d.prefix+path, "the key %s must be a string: quote it", short(k.Value))
			continue
		}
		if first, twice := seen[k.Value]; twice {
			d.r.problems.add(k.Line, d.prefix+join(path, k.Value), "is given twice, first in line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		own = append(own, entry{k, n.Content[i+1]})
	}
	for _, e := range merged {
		if _, have := seen[e.key.Value]; !have {
			seen[e.key.Value] = e.key.Line
			own = append(own, e)
		}
	}
	return own
}

// merged are the entries that a merge key brings in, first those that count more.
func (d *document) merged(n *yaml.Node, path string) []entry {
	n = follow(n)
	from := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		from = n.Content
	}
	var all []entry
	for _, m := range from {
		m = follow(m)
		if m.Kind != yaml.MappingNode {
			d.r.problems.add(n.Line, d.prefix+path, "<< can't merge %s", kindOf(m))
			return nil
		}
		if !d.spend(len(m.Content)/2, path) {
			return nil
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if k := follow(m.Content[i]); k.ShortTag() == "!!merge" {
				d.r.problems.add(k.Line, d.prefix+path, "<< in what << merges is not supported")
			} else {
				all = append(all, entry{k, m.Content[i+1]})
			}
		}
	}
	return all
}

func (d *document) decodeStruct(n *yaml.Node, v reflect.Value, path string, depth int) {
	fields, rules := fieldsOf(v.Type()), fates[v.Type()]
	for _, e := range d.entries(n, path) {
		name := e.key.Value
		at := join(path, name)
		index, ok := fields[name]
		if !ok {
			d.pos[at] = e.key.Line
			d.problem(at, "unknown field")
			continue
		}
		d.pos[at] = e.key.Line
		f := v.FieldByIndex(index)
		rule := rules[name]
		if rule.fate == note || (rule.fate != honoured && rule.isHarmless(follow(e.value), f.Type())) {
			continue
		}
		switch rule.fate {
		case refused:
			d.problem(at, "not supported: %s", rule.why)
		case hint:
			d.warn(at, "has no effect: %s", rule.why)
			d.decode(e.value, reflect.New(f.Type()).Elem(), at, depth+1)
		default:
			d.decode(e.value, f, at, depth+1)
		}
	}
}

// fieldsOf are the fields of a type by their names in JSON.
func fieldsOf(t reflect.Type) map[string][]int {
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && f.IsExported() && !insideNamed(t, f.Index) {
			fields[name] = f.Index
		}
	}
	return fields
}

// insideNamed says whether a promoted field is in an embedded one that has a
// name of its own in JSON, and so is no field here.
func insideNamed(t reflect.Type, index []int) bool {
	for i := 1; i < len(index); i++ {
		if name, _, _ := strings.Cut(t.FieldByIndex(index[:i]).Tag.Get("json"), ","); name != "" {
			return true
		}
	}
	return false
}

func (d *document) decodeMap(n *yaml.Node, v reflect.Value, path string, depth int) {
	m := reflect.MakeMap(v.Type())
	for _, e := range d.entries(n, path) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.decode(e.value, elem, join(path, e.key.Value), depth+1)
		m.SetMapIndex(reflect.ValueOf(e.key.Value).Convert(v.Type().Key()), elem)
	}
	v.Set(m)
}

func (d *document) decodeSlice(n *yaml.Node, v reflect.Value, path string, depth int) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		d.decodeBase64(n, v, path)
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problem(path, "a list is needed, not %s", kindOf(n))
		return
	}
	s := reflect.MakeSlice(v.Type(), 0, 0)
	for i, item := range n.Content {
		if d.r.nodes < 0 {
			return
		}
		elem := reflect.New(v.Type().Elem()).Elem()
		d.decode(item, elem, fmt.Sprintf("%s[%d]", path, i), depth+1)
		s = reflect.Append(s, elem)
	}
	v.Set(s)
}

func (d *document) decodeBase64(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		d.problem(path, "a string of base64 is needed, not %s", kindOf(n))
		return
	}
	data, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), ""))
	if err != nil {
		d.problem(path, "not base64: %v", err)
		return
	}
	v.SetBytes(data)
}

// decodeScalar puts a scalar into a string, number or bool.
func (d *document) decodeScalar(n *yaml.Node, v reflect.Value, path string) {
	tag := ""
	if n.Kind == yaml.ScalarNode {
		tag = n.ShortTag()
	}
	switch v.Kind() {
	case reflect.String:
		switch {
		case tag == "!!str" && !yaml11Bool(n), tag == "!!timestamp", tag == "!!merge":
			v.SetString(n.Value)
		case n.Kind == yaml.ScalarNode:
			d.problem(path, "a string is needed: write \"%s\" in quotes", short(n.Value))
		default:
			d.problem(path, "a string is needed, not %s", kindOf(n))
		}
	case reflect.Bool:
		if tag != "!!bool" && !yaml11Bool(n) {
			d.problem(path, "true or false is needed, not %s", kindOf(n))
			return
		}
		v.SetBool(slices.Contains([]string{"true", "yes", "on"}, strings.ToLower(n.Value)))
	case reflect.Int, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(strings.ReplaceAll(n.Value, "_", ""), 0, v.Type().Bits())
		if tag != "!!int" || err != nil {
			d.problem(path, "a whole number of %d bits is needed, not %s", v.Type().Bits(), kindOf(n))
			return
		}
		v.SetInt(i)
	default: // in no field that is honoured: a test looks
		d.problem(path, "%s can't be read", v.Type())
	}
}

// yaml11Bool says whether a scalar is a truth value for Kubernetes, which
// reads YAML 1.1, but a string in YAML 1.2.
func yaml11Bool(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Style == 0 && slices.Contains([]string{"yes", "no", "on", "off"}, strings.ToLower(n.Value))
}

// hugeExponent is in numbers that would take for ever to compute.
var hugeExponent = regexp.MustCompile(`[eE][+-]?[0-9]{3,}`)

// decodeText puts a scalar into what reads itself: a quantity, a port, a time.
func (d *document) decodeText(n *yaml.Node, u json.Unmarshaler, path string) {
	_, quantity := u.(*resource.Quantity)
	if n.Kind != yaml.ScalarNode {
		d.problem(path, "a value is needed, not %s", kindOf(n))
		return
	}
	text := strconv.Quote(n.Value)
	if quantity && (len(n.Value) > 64 || hugeExponent.MatchString(n.Value)) {
		d.problem(path, "not a quantity: %s", short(n.Value))
		return
	}
	if !quantity {
		b, err := json.Marshal(n.Value)
		if n.ShortTag() == "!!int" {
			b = []byte(n.Value)
		}
		if err != nil || n.ShortTag() == "!!bool" || n.ShortTag() == "!!float" {
			d.problem(path, "a number or a string is needed, not %s", kindOf(n))
			return
		}
		text = string(b)
	}
	if err := u.UnmarshalJSON([]byte(text)); err != nil {
		what := "value"
		if quantity {
			what = "quantity"
		}
		d.problem(path, "not a %s: %s", what, short(n.Value))
	}
}

// join adds a field, or the key of a map, to a path.
func join(path, name string) string {
	name = short(name)
	switch {
	case strings.ContainsAny(name, "./[] "):
		return path + "[" + name + "]"
	case path == "":
		return name
	}
	return path + "." + name
}
