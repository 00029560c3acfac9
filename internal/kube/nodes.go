package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseNodes parses the text to one node for each document. Aliases stay
// aliases, so the nodes are never more than the text. With an error comes its line.
func parseNodes(text []byte) (nodes []*yaml.Node, line int, err error) {
	if len(text) > MaxBytes {
		return nil, 0, fmt.Errorf("it is larger than %d MiB", MaxBytes>>20)
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
	if first := bytes.TrimLeft(text, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return yamlNodes(text)
	}
	nodes, line, err = jsonNodes(text) // what has tabs or surrogate pairs is JSON, but not YAML
	if err != nil {
		if inYAML, _, yamlErr := yamlNodes(text); yamlErr == nil {
			return inYAML, 0, nil
		}
	}
	return nodes, line, err
}

var (
	yamlLine  = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	yamlAlias = regexp.MustCompile(`unknown anchor '(.*)' referenced`)
)

func yamlNodes(text []byte) (nodes []*yaml.Node, line int, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return nodes, 0, nil
		}
		if err != nil {
			return nil, lineOf(err, text), errors.New("invalid YAML: " + yamlLine.ReplaceAllString(err.Error(), ""))
		}
		if len(n.Content) == 1 { // of a document node
			nodes = append(nodes, follow(n.Content[0]))
		}
	}
}

// lineOf finds the line that an error of the YAML parser is about. It says
// none when that is the first, or when it knows none.
func lineOf(err error, text []byte) int {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
		line, _ := strconv.Atoi(m[1])
		return wrongLine(text, line)
	}
	if m := yamlAlias.FindStringSubmatch(err.Error()); m != nil {
		if i := bytes.Index(text, []byte("*"+m[1])); i >= 0 {
			return 1 + bytes.Count(text[:i], []byte("\n"))
		}
	}
	if strings.Contains(err.Error(), "control characters") {
		control := func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f }
		if i := bytes.IndexFunc(text, control); i >= 0 {
			return 1 + bytes.Count(text[:i], []byte("\n"))
		}
	}
	return 1
}

// wrongLine finds the line that makes the text no YAML. The parser names one before it, where what
// it was reading began, or the one above. What ends just before the wrong line is well.
func wrongLine(text []byte, from int) int {
	const most, size = 500, 64 << 10 // it is not worth more work
	wrong, end := from, 0
	for n := 1; n < from+most; n++ {
		i := bytes.IndexByte(text[end:], '\n')
		if i < 0 || end+i >= size {
			break
		}
		end += i + 1
		if n >= from-1 && isYAML(text[:end]) {
			wrong = n + 1
		}
	}
	return wrong
}

func isYAML(text []byte) bool {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		if err := dec.Decode(&n); err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// jsonNodes parses JSON values, one after the other.
func jsonNodes(text []byte) (nodes []*yaml.Node, line int, err error) {
	p := &jsonParser{dec: json.NewDecoder(bytes.NewReader(text))}
	p.dec.UseNumber()
	for i, b := range text {
		if b == '\n' {
			p.lines = append(p.lines, i)
		}
	}
	for {
		tok, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			return nodes, 0, nil
		}
		var n *yaml.Node
		if err == nil {
			n, err = p.value(tok, 0)
		}
		if err != nil {
			at := p.dec.InputOffset()
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) {
				at = syntax.Offset
			}
			return nil, p.line(at), fmt.Errorf("invalid JSON: %w", err)
		}
		nodes = append(nodes, n)
	}
}

type jsonParser struct {
	dec   *json.Decoder
	lines []int // offsets of the ends of lines
}

func (p *jsonParser) line(offset int64) int { return 1 + sort.SearchInts(p.lines, int(offset)-1) }

func (p *jsonParser) value(tok json.Token, depth int) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: p.line(p.dec.InputOffset())}
	switch v := tok.(type) {
	case string:
		n.Tag, n.Value, n.Style = "!!str", v, yaml.DoubleQuotedStyle
	case json.Number:
		n.Tag, n.Value = "!!float", v.String()
		if !strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!int"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(v)
	case nil:
		n.Tag = "!!null"
	case json.Delim:
		if depth > maxDepth {
			return nil, errors.New("it is nested too deep")
		}
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if v == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		return n, p.members(n, depth)
	}
	return n, nil
}

// members reads what is in an object or array, to its end.
func (p *jsonParser) members(n *yaml.Node, depth int) error {
	for {
		tok, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if d, ok := tok.(json.Delim); ok && (d == ']' || d == '}') {
			return nil
		}
		m, err := p.value(tok, depth+1)
		if err != nil {
			return err
		}
		n.Content = append(n.Content, m)
	}
}

// follow returns the node itself, of an alias what it stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// member finds a scalar by its name in a mapping, nil if it has none.
func member(n *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if v := follow(n.Content[i+1]); n.Content[i].Value == name && v.Kind == yaml.ScalarNode {
			return v
		}
	}
	return nil
}

// kindOf names what a node is, for messages.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "an object"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!str":
		return "a string"
	case n.ShortTag() == "!!null":
		return "null"
	}
	return short(n.Value)
}

// short is a text that may be in a message.
func short(s string) string {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
