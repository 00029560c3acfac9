package hyper_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// Past these a file, function or parameter list asks to be split by noun. They
// are looked at, not enforced: go test -v -run Size lists what is over.
const (
	maxFileLines = 600
	maxFuncLines = 70
	maxParams    = 5
)

// TestPackageComments wants one package comment per package: what it is, what
// it never does.
func TestPackageComments(t *testing.T) {
	comments := map[string][]string{} // directory → files with a package comment
	for _, file := range goFiles(t) {
		dir := path.Dir(file)
		if _, ok := comments[dir]; !ok {
			comments[dir] = nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.HasSuffix(file, "_test.go"):
			if len(comments[dir]) == 0 && onlyTests(t, dir) {
				comments[dir] = []string{file}
			}
		case f.Doc != nil && !ast.IsGenerated(f):
			comments[dir] = append(comments[dir], file)
		}
	}
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments, wants one: %v", dir, len(files), files)
		}
	}
}

func onlyTests(t *testing.T, dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go") && e.Name() != "deps_keep.go" {
			return false
		}
	}
	return true
}

// TestMainsAreShort: a command's main.go only calls run.
func TestMainsAreShort(t *testing.T) {
	for _, file := range goFiles(t) {
		if n := lines(t, file); strings.HasPrefix(file, "cmd/") && n > 40 {
			t.Errorf("%s has %d lines, at most 40", file, n)
		}
	}
}

// TestSize logs what is over the sizes of the house style.
func TestSize(t *testing.T) {
	for _, file := range goFiles(t) {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if ast.IsGenerated(f) {
			continue
		}
		if n := fset.Position(f.End()).Line; n > maxFileLines {
			t.Logf("%s: %d lines", file, n)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; n > maxFuncLines {
				t.Logf("%s: %s: %d lines", file, fn.Name.Name, n)
			}
			if n := fn.Type.Params.NumFields(); n > maxParams {
				t.Logf("%s: %s: %d parameters", file, fn.Name.Name, n)
			}
		}
	}
}

// TestArchitecture keeps ARCHITECTURE.md true: not long, and every file or
// directory it names is there.
func TestArchitecture(t *testing.T) {
	const file = "ARCHITECTURE.md"
	if n := lines(t, file); n > 300 {
		t.Errorf("%s has %d lines, at most 300", file, n)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`((?:cmd|internal|boot|client|api|test|bench|docs)/[^` ]*)`").FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(m[1]); err != nil {
			t.Errorf("%s names %s, which is not there", file, m[1])
		}
	}
}

// TestMakefile: a person can remember a dozen verbs.
func TestMakefile(t *testing.T) {
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	verbs := regexp.MustCompile(`(?m)^\.PHONY:(.*)$`).FindStringSubmatch(string(text))
	targets := regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllString(string(text), -1)
	if verbs == nil || len(strings.Fields(verbs[1])) != len(targets) || len(targets) > 12 {
		t.Errorf("Makefile: %d targets, at most 12, all of them .PHONY", len(targets))
	}
}
