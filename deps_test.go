package hyper_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/hyper-run/hyper"

// hyperstartModules is all that runs in the guest besides the user's programs
// and Go's standard library. It is short, and grows on purpose only.
var hyperstartModules = []string{
	"github.com/containerd/log",
	"github.com/containerd/ttrpc",
	"github.com/hashicorp/yamux",
	"github.com/moby/sys/user",
	"github.com/opencontainers/runtime-spec",
	"github.com/sirupsen/logrus",
	"golang.org/x/sys",
	"google.golang.org/genproto/googleapis/rpc",
	"google.golang.org/grpc",
	"google.golang.org/protobuf",
}

// A rule is one depguard rule: files that match must not import what is in
// deny, unless a longer entry of allow permits it.
type rule struct {
	name  string
	files []string
	deny  map[string]string // package prefix → reason
	allow []string
}

// TestImports applies the depguard rules of .golangci.yml.
func TestImports(t *testing.T) {
	rules := readRules(t)
	if len(rules) < 10 {
		t.Fatalf("only %d rules were found in .golangci.yml", len(rules))
	}
	matched := map[string]bool{}
	for _, file := range goFiles(t) {
		imports := importsOf(t, file)
		for _, r := range rules {
			if !r.covers(file) {
				continue
			}
			matched[r.name] = true
			for _, imp := range imports {
				if reason := r.forbids(imp); reason != "" {
					t.Errorf("%s imports %s, against rule %s: %s", file, imp, r.name, reason)
				}
			}
		}
	}
	for _, r := range rules {
		if !matched[r.name] {
			t.Errorf("rule %s is stale: no file matches %q", r.name, r.files)
		}
		for pkg := range r.deny {
			if dir, ok := strings.CutPrefix(pkg, module+"/"); ok {
				if _, err := os.Stat(dir); err != nil {
					t.Errorf("rule %s is stale: %v", r.name, err)
				}
			}
		}
	}
}

func (r rule) covers(file string) bool {
	covered := false
	for _, glob := range r.files {
		not := strings.HasPrefix(glob, "!")
		glob = strings.TrimPrefix(glob, "!")
		hit := glob == "$test" && strings.HasSuffix(file, "_test.go") || glob != "$test" && globRE(glob).MatchString("/"+file)
		if hit && not {
			return false
		}
		covered = covered || hit
	}
	return covered
}

// globRE translates a glob in which ** crosses slashes.
func globRE(glob string) *regexp.Regexp {
	s := regexp.QuoteMeta(glob)
	s = strings.ReplaceAll(s, `\*\*`, `.*`)
	s = regexp.MustCompile(`\\\*`).ReplaceAllString(s, `[^/]*`)
	return regexp.MustCompile("^" + s + "$")
}

func (r rule) forbids(imp string) (reason string) {
	longest := -1
	for pkg, why := range r.deny {
		if hasPrefix(imp, pkg) && len(pkg) > longest {
			longest, reason = len(pkg), why
		}
	}
	for _, pkg := range r.allow {
		if hasPrefix(imp, pkg) && len(pkg) > longest {
			return ""
		}
	}
	return reason
}

func hasPrefix(imp, pkg string) bool {
	if exact, ok := strings.CutSuffix(pkg, "$"); ok {
		return imp == exact
	}
	return strings.HasPrefix(imp, pkg)
}

// readRules reads the one form of YAML that .golangci.yml's rules are in.
func readRules(t *testing.T) []rule {
	data, err := os.ReadFile(".golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(data), "\n    depguard:\n      rules:\n")
	if !ok {
		t.Fatal(".golangci.yml has no depguard rules")
	}
	var rules []rule
	var key, pkg string
	for _, line := range strings.Split(text, "\n") {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		value := strings.Trim(strings.TrimPrefix(line, "- "), `"`)
		switch {
		case indent < 8:
			return rules
		case indent == 8:
			rules = append(rules, rule{name: strings.TrimSuffix(line, ":"), deny: map[string]string{}})
			continue
		case indent == 10:
			key = line
			continue
		}
		r := &rules[len(rules)-1]
		switch {
		case key == "files:":
			r.files = append(r.files, value)
		case key == "allow:":
			r.allow = append(r.allow, value)
		case key == "deny:" && strings.HasPrefix(value, "pkg: "):
			pkg = strings.TrimPrefix(value, "pkg: ")
		case key == "deny:" && strings.HasPrefix(value, "desc: "):
			r.deny[pkg] = strings.TrimPrefix(value, "desc: ")
		default:
			t.Fatalf(".golangci.yml, rule %s: can't read %q", r.name, line)
		}
	}
	return rules
}

// TestHyperstartModules keeps what runs as PID 1 in the guest short.
func TestHyperstartModules(t *testing.T) {
	got := map[string]bool{}
	for _, p := range goList(t, "-deps", "./cmd/hyperstart") {
		if p.Module != nil && p.Module.Path != module {
			got[p.Module.Path] = true
		}
	}
	var names []string
	for name := range got {
		names = append(names, name)
	}
	slices.Sort(names)
	if d := cmp.Diff(hyperstartModules, names); d != "" {
		t.Errorf("modules in hyperstart (-allowed +found):\n%s", d)
	}
}

// TestNoCgo looks at the binaries as they would be with a C compiler at hand:
// a package that falls back when there is none behaves differently then.
func TestNoCgo(t *testing.T) {
	t.Setenv("CGO_ENABLED", "1")
	for _, p := range goList(t, "-deps", "./cmd/...") {
		if len(p.CgoFiles) > 0 && !p.Standard {
			t.Errorf("%s uses cgo: %v", p.ImportPath, p.CgoFiles)
		}
	}
}

type listedPackage struct {
	ImportPath string
	Standard   bool
	CgoFiles   []string
	Module     *struct{ Path string }
}

func goList(t *testing.T, args ...string) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,CgoFiles,Module"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.Bytes())
	}
	var pkgs []listedPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// goFiles are the module's files, relative to its root, with slashes.
func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.Type().IsRegular() && path.Ext(p) == ".go" && p != "deps_keep.go":
			files = append(files, filepath.ToSlash(p))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func importsOf(t *testing.T, file string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var imports []string
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		imports = append(imports, imp)
	}
	return imports
}

// lines counts a file's lines.
func lines(t *testing.T, file string) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		n++
	}
	if err := s.Err(); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", file, err))
	}
	return n
}
