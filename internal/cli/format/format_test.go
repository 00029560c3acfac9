package format

import (
	"strings"
	"testing"
)

var table = Table{
	Columns: "{{.ID}}\t{{.Names}}\t{{.Status}}",
	Headers: Row{"ID": "CONTAINER ID", "Names": "NAMES", "Status": "STATUS", "Labels": "LABELS", "Platform": "PLATFORM"},
}

var rows = []Row{
	{"ID": "0123456789ab", "Names": "web", "Status": "Up 2 hours", "Labels": Labels{"b": "2", "a": "1<"}, "Platform": nil},
	{"ID": "ab", "Names": "a-longer-name", "Status": "Exited (0)", "Labels": Labels(nil), "Platform": nil},
}

func TestWrite(t *testing.T) {
	tests := []struct{ name, format, want string }{
		{"default", "", "" +
			"CONTAINER ID   NAMES           STATUS\n" +
			"0123456789ab   web             Up 2 hours\n" +
			"ab             a-longer-name   Exited (0)\n"},
		{"table", "table", "" +
			"CONTAINER ID   NAMES           STATUS\n" +
			"0123456789ab   web             Up 2 hours\n" +
			"ab             a-longer-name   Exited (0)\n"},
		{"table of two", `table {{.Names}}\t{{.ID}}`, "" +
			"NAMES           CONTAINER ID\n" +
			"web             0123456789ab\n" +
			"a-longer-name   ab\n"},
		{"functions leave headers", `table {{upper .Names}}\t{{truncate .ID 3}}`, "" +
			"NAMES           CONTAINER ID\n" +
			"WEB             012\n" +
			"A-LONGER-NAME   ab\n"},
		{"label in a table", `table {{.ID}}\t{{.Label "com.example.my-a"}}`, "" +
			"CONTAINER ID   my a\n0123456789ab   \nab             \n"},
		{"template", "{{.ID}}: {{.Names}}", "0123456789ab: web\nab: a-longer-name\n"},
		{"escapes", `{{.ID}}\t{{.Names}}\n`, "0123456789ab\tweb\n\nab\ta-longer-name\n\n"},
		{"label", `{{.Label "a"}}`, "1<\n\n"},
		{"labels", "{{.Labels}}", "a=1<,b=2\n\n"},
		{"json", "json", "" +
			`{"ID":"0123456789ab","Labels":"a=1\u003c,b=2","Names":"web","Platform":null,"Status":"Up 2 hours"}` + "\n" +
			`{"ID":"ab","Labels":"","Names":"a-longer-name","Platform":null,"Status":"Exited (0)"}` + "\n"},
		{"json of one", "{{json .Labels}}", `"a=1<,b=2"` + "\n" + `""` + "\n"},
		{"split and join", `{{join (split .Names "-") "+"}}`, "web\na+longer+name\n"},
		{"pad, title, lower", `[{{pad .Names 1 2}}]{{title .Names}}{{lower .Status}}`, "[ web  ]Webup 2 hours\n[ a-longer-name  ]A-longer-nameexited (0)\n"},
		{"conditions", `{{if eq .Names "web"}}yes{{else}}no{{end}}`, "yes\nno\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			if err := table.Write(&out, test.format, rows); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", &out, test.want)
			}
		})
	}
}

func TestWriteErrors(t *testing.T) {
	for _, f := range []string{"{{.Nope}}", "table {{.Nope}}", "{{", "{{nope .ID}}"} {
		var out strings.Builder
		if err := table.Write(&out, f, nil); err == nil || !strings.HasPrefix(err.Error(), "--format: ") {
			t.Errorf("%s: %v", f, err)
		}
		if out.Len() > 0 {
			t.Errorf("%s: wrote %q", f, &out)
		}
	}
}

func TestUses(t *testing.T) {
	tests := []struct {
		format string
		want   bool
	}{
		{"", true}, {"table", true}, {"json", true}, {"{{.Status}}", true}, {"{{json .}}", true}, {"{{.ID}}", false}, {"table {{.ID}}", false},
	}
	for _, test := range tests {
		if got := table.Uses(test.format, "Status"); got != test.want {
			t.Errorf("%q uses Status: %v", test.format, got)
		}
	}
}

func TestText(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{ShortID("sha256:0123456789abcdef"), "0123456789ab"},
		{ShortID("0123"), "0123"},
		{Ellipsis("0123456789", 10), "0123456789"},
		{Ellipsis("0123456789x", 10), "012345678…"},
		{Ellipsis("äöüäöüäöüäx", 10), "äöüäöüäöü…"},
		{Ellipsis("abc", 1), "a"},
		{Size(1440000), "1.44MB"},
		{Percent(12.345), "12.35%"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func FuzzWrite(f *testing.F) {
	for _, s := range []string{"", "table", "{{.ID}}", "{{join . 1}}", "{{pad .ID -1 -1}}", "{{truncate .ID -1}}", "{{split .ID 1}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, format string) {
		if strings.Contains(format, "range") || strings.Contains(format, "pad") || strings.Contains(format, "printf") {
			t.Skip("can take any time and memory, of the user's own")
		}
		_ = table.Write(new(strings.Builder), format, rows)
	})
}
