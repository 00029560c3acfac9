package dockerapi

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/hyper-run/hyper/internal/guest/wire"
)

// A process is one line of ps, with what its columns are computed from.
type process struct {
	*wire.Process
	now      time.Time
	memBytes uint64 // of the VM
}

// A column is one field of ps.
type column struct {
	title string
	value func(process) string
}

// columns are those that ps -o knows, by all their names.
var columns = map[string]column{
	"pid":   {"PID", func(p process) string { return utoa(p.GetPid()) }},
	"ppid":  {"PPID", func(p process) string { return utoa(p.GetPpid()) }},
	"uid":   {"UID", func(p process) string { return utoa(p.GetUid()) }},
	"user":  {"USER", func(p process) string { return p.GetUser() }},
	"stat":  {"STAT", func(p process) string { return p.GetState() }},
	"s":     {"S", func(p process) string { return p.GetState() }},
	"tty":   {"TT", func(p process) string { return p.GetTty() }},
	"vsz":   {"VSZ", func(p process) string { return strconv.FormatUint(p.GetVsizeBytes()/1024, 10) }},
	"rss":   {"RSS", func(p process) string { return strconv.FormatUint(p.GetRssBytes()/1024, 10) }},
	"pcpu":  {"%CPU", func(p process) string { return fmt.Sprintf("%.1f", p.cpuPercent()) }},
	"pmem":  {"%MEM", func(p process) string { return fmt.Sprintf("%.1f", p.memPercent()) }},
	"c":     {"C", func(p process) string { return strconv.Itoa(int(p.cpuPercent())) }},
	"time":  {"TIME", func(p process) string { return longTime(time.Duration(p.GetCpuNanos())) }},
	"etime": {"ELAPSED", func(p process) string { return elapsed(p.age()) }},
	"stime": {"STIME", func(p process) string { return startTime(p) }},
	"start": {"STARTED", func(p process) string { return startTime(p) }},
	"comm":  {"COMMAND", func(p process) string { return comm(p) }},
	"args":  {"COMMAND", func(p process) string { return strings.Join(p.GetArgs(), " ") }},
	"cmd":   {"CMD", func(p process) string { return strings.Join(p.GetArgs(), " ") }},
}

var columnAliases = map[string]string{
	"euser": "user", "ruser": "user", "uname": "user", "euid": "uid", "ruid": "uid", "state": "s", "tt": "tty", "tname": "tty",
	"vsize": "vsz", "rssize": "rss", "rsz": "rss", "%cpu": "pcpu", "%mem": "pmem", "cputime": "time", "start_time": "stime",
	"ucmd": "comm", "ucomm": "comm", "command": "args", "tgid": "pid",
}

// psFormats are the columns of ps -f, ps u and plain ps.
var psFormats = map[byte][]column{
	'f': {
		{"UID", columns["user"].value}, columns["pid"], columns["ppid"], columns["c"], columns["stime"],
		{"TTY", columns["tty"].value}, columns["time"], columns["cmd"],
	},
	'u': {
		columns["user"], columns["pid"], columns["pcpu"], columns["pmem"], columns["vsz"], columns["rss"],
		{"TTY", columns["tty"].value}, columns["stat"], {"START", columns["stime"].value},
		{"TIME", func(p process) string { return shortTime(time.Duration(p.GetCpuNanos())) }}, columns["args"],
	},
	0: {columns["pid"], {"TTY", columns["tty"].value}, columns["time"], {"CMD", columns["comm"].value}},
}

func (a *api) top(c *call) error {
	args := c.form.Get("ps_args")
	if args == "" {
		args = "-ef"
	}
	cols, err := parsePS(args)
	if err != nil {
		return err
	}
	ct, err := a.Containers.Get(c.name)
	if err != nil {
		return err
	}
	procs, err := a.Containers.Processes(c.ctx(), ct.ID)
	if err != nil {
		return err
	}
	out := container.TopResponse{Titles: []string{}, Processes: [][]string{}}
	for _, col := range cols {
		out.Titles = append(out.Titles, col.title)
	}
	p := process{now: time.Now()}
	if ct.VM != nil {
		p.memBytes = uint64(ct.VM.MemMiB) << 20
	}
	for _, p.Process = range procs {
		row := make([]string, len(cols))
		for i, col := range cols {
			row[i] = col.value(p)
		}
		out.Processes = append(out.Processes, row)
	}
	return c.json(http.StatusOK, out)
}

// parsePS understands the options of ps that say what to print: -ef, aux,
// -o, and those that select processes, which here are always all.
func parsePS(args string) ([]column, error) {
	format := byte(0)
	var own []column
	words := strings.Fields(args)
	for i := 0; i < len(words); i++ {
		word := strings.TrimPrefix(words[i], "-")
		for j := range len(word) {
			letter := word[j]
			switch {
			case strings.IndexByte("eAaxwg", letter) >= 0:
			case letter == 'f', letter == 'u' && (word == words[i] || strings.HasPrefix(word, "aux")):
				format = letter
			case letter == 'o':
				list := word[j+1:]
				if list == "" && i+1 < len(words) {
					i++
					list = words[i]
				}
				cols, err := parseColumns(list)
				if err != nil {
					return nil, err
				}
				own = append(own, cols...)
			default:
				return nil, invalid("ps: option %q is not supported: there are -ef, aux and -o", words[i])
			}
			if letter == 'o' {
				break
			}
		}
	}
	if own != nil {
		return own, nil
	}
	return psFormats[format], nil
}

func parseColumns(list string) ([]column, error) {
	var cols []column
	for _, name := range strings.Split(list, ",") {
		name, title, renamed := strings.Cut(strings.ToLower(name), "=")
		if alias, ok := columnAliases[name]; ok {
			name = alias
		}
		col, ok := columns[name]
		if !ok {
			return nil, invalid("ps: error: unknown user-defined format specifier %q", name)
		}
		if renamed {
			col.title = strings.ToUpper(title)
		}
		cols = append(cols, col)
	}
	if !slices.ContainsFunc(cols, func(c column) bool { return c.title == "PID" }) {
		return nil, invalid("Couldn't find PID field in ps output")
	}
	return cols, nil
}

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func (p process) age() time.Duration { return max(p.now.Sub(time.Unix(0, p.GetStartedAtNanos())), 0) }

func (p process) cpuPercent() float64 {
	if age := p.age(); age > 0 {
		return min(100*float64(p.GetCpuNanos())/float64(age), 999)
	}
	return 0
}

func (p process) memPercent() float64 {
	if p.memBytes == 0 {
		return 0
	}
	return 100 * float64(p.GetRssBytes()) / float64(p.memBytes)
}

func comm(p process) string {
	if len(p.GetArgs()) == 0 {
		return ""
	}
	name := path.Base(p.GetArgs()[0])
	return name[:min(len(name), 15)] // as the kernel cuts it
}

func startTime(p process) string {
	t := time.Unix(0, p.GetStartedAtNanos())
	if p.now.Sub(t) < 24*time.Hour {
		return t.Format("15:04")
	}
	return t.Format("Jan02")
}

// longTime is [days-]hours:minutes:seconds.
func longTime(d time.Duration) string {
	s := int64(d / time.Second)
	text := fmt.Sprintf("%02d:%02d:%02d", s/3600%24, s/60%60, s%60)
	if days := s / 86400; days > 0 {
		text = fmt.Sprintf("%d-%s", days, text)
	}
	return text
}

// shortTime is minutes:seconds.
func shortTime(d time.Duration) string {
	s := int64(d / time.Second)
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// elapsed is longTime without hours that are zero.
func elapsed(d time.Duration) string {
	if d < time.Hour {
		return fmt.Sprintf("%02d:%02d", int(d/time.Minute), int(d/time.Second)%60)
	}
	return longTime(d)
}
