package runflags

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// list is a flag that may be given several times.
type list struct {
	values []string
	check  func(string) (string, error) // returns the value to keep, may be nil
}

func (l *list) Set(s string) error {
	if l.check != nil {
		var err error
		if s, err = l.check(s); err != nil {
			return err
		}
	}
	l.values = append(l.values, s)
	return nil
}

func (l *list) Type() string   { return "list" }
func (l *list) String() string { return "" }

// orEmpty is never nil, for fields that Docker sends as [] instead of null.
func (l *list) orEmpty() []string { return append([]string{}, l.values...) }

// dict is a flag of NAME=VALUE pairs that may be given several times.
type dict struct {
	m     map[string]string
	check func(string) error // may be nil
}

func (d *dict) Set(s string) error {
	if d.check != nil {
		if err := d.check(s); err != nil {
			return err
		}
	}
	if d.m == nil {
		d.m = map[string]string{}
	}
	k, v, _ := strings.Cut(s, "=")
	d.m[k] = v
	return nil
}

func (d *dict) Type() string   { return "map" }
func (d *dict) String() string { return "" }

// orEmpty is never nil.
func (d *dict) orEmpty() map[string]string {
	if d.m == nil {
		return map[string]string{}
	}
	return d.m
}

// size is a number of bytes with an optional binary unit. Docker: "bytes".
type size struct {
	n        int64
	minusOne bool // -1 is a value too
}

func (b *size) Set(s string) error {
	if b.minusOne && s == "-1" {
		b.n = -1
		return nil
	}
	n, err := units.RAMInBytes(s)
	b.n = n
	return err
}

func (b *size) Type() string { return "bytes" }
func (b *size) String() string {
	if b.n == 0 {
		return ""
	}
	return units.BytesSize(float64(b.n))
}

// nanoCPUs is a decimal number of CPUs. Docker: "decimal".
type nanoCPUs int64

func (c *nanoCPUs) Set(s string) error {
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return fmt.Errorf("%q is not a number", s)
	}
	r.Mul(r, big.NewRat(1e9, 1))
	if !r.IsInt() || !r.Num().IsInt64() {
		return errors.New("more than 9 decimal places, or too large")
	}
	*c = nanoCPUs(r.Num().Int64())
	return nil
}

func (c *nanoCPUs) Type() string { return "decimal" }
func (c *nanoCPUs) String() string {
	if *c == 0 {
		return ""
	}
	return big.NewRat(int64(*c), 1e9).FloatString(3)
}

// ulimits is a flag of NAME=SOFT[:HARD] values; the last of a name counts.
type ulimits struct{ m map[string]*container.Ulimit }

func (u *ulimits) Set(s string) error {
	l, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	if u.m == nil {
		u.m = map[string]*container.Ulimit{}
	}
	u.m[l.Name] = l
	return nil
}

func (u *ulimits) Type() string   { return "ulimit" }
func (u *ulimits) String() string { return "" }

func (u *ulimits) sorted() []*container.Ulimit {
	out := []*container.Ulimit{}
	for _, k := range slices.Sorted(maps.Keys(u.m)) {
		out = append(out, u.m[k])
	}
	return out
}

// throttles is a flag of PATH:RATE limits, which may be given several times.
type throttles struct {
	list  []*blkiodev.ThrottleDevice
	bytes bool // rates are bytes, with an optional unit
}

func (t *throttles) Set(s string) error {
	path, text, ok := strings.Cut(s, ":")
	if !ok || path == "" {
		return fmt.Errorf("bad format: %s", s)
	}
	var rate uint64
	var err error
	if t.bytes {
		var n int64
		n, err = units.RAMInBytes(text)
		rate = uint64(max(n, 0))
	} else {
		rate, err = strconv.ParseUint(text, 10, 64)
	}
	if err != nil || rate == 0 {
		return fmt.Errorf("invalid rate for device: %s: must be PATH:NUMBER, a positive number", s)
	}
	t.list = append(t.list, &blkiodev.ThrottleDevice{Path: path, Rate: rate})
	return nil
}

func (t *throttles) Type() string   { return "list" }
func (t *throttles) String() string { return "" }

func checkEnv(s string) (string, error) {
	name, _, hasValue := strings.Cut(s, "=")
	if name == "" {
		return "", fmt.Errorf("invalid environment variable: %s", s)
	}
	if !hasValue {
		if v, ok := os.LookupEnv(name); ok {
			return name + "=" + v, nil
		}
	}
	return s, nil
}

func checkLabel(s string) (string, error) {
	name, _, _ := strings.Cut(s, "=")
	name = strings.TrimLeft(name, " \t")
	if name == "" {
		return "", fmt.Errorf("invalid label '%s': empty name", s)
	}
	if strings.ContainsAny(name, " \t") {
		return "", fmt.Errorf("label '%s' contains whitespaces", name)
	}
	return s, nil
}

func checkStream(s string) (string, error) {
	switch l := strings.ToLower(s); l {
	case "stdin", "stdout", "stderr":
		return l, nil
	}
	return "", errors.New("valid streams are STDIN, STDOUT and STDERR")
}

func checkIP(s string) (string, error) {
	ip := net.ParseIP(strings.TrimSpace(s))
	if ip == nil {
		return "", fmt.Errorf("IP address is not correctly formatted: %s", s)
	}
	return ip.String(), nil
}

// checkHost makes NAME:ADDRESS of NAME=ADDRESS, NAME:ADDRESS, NAME:[ADDRESS].
func checkHost(s string) (string, error) {
	name, addr, ok := strings.Cut(s, "=")
	if !ok {
		name, addr, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" || strings.Contains(name, ":") {
		return "", fmt.Errorf("bad format for add-host: %q", s)
	}
	if addr == "host-gateway" {
		return name + ":" + addr, nil
	}
	if len(addr) > 2 && addr[0] == '[' && addr[len(addr)-1] == ']' {
		addr = addr[1 : len(addr)-1]
	}
	if net.ParseIP(addr) == nil {
		return "", fmt.Errorf("invalid IP address in add-host: %q", addr)
	}
	return name + ":" + addr, nil
}

func checkSearch(s string) (string, error) {
	if s = strings.Trim(s, " "); s == "." {
		return s, nil
	}
	s = strings.TrimSuffix(s, ".")
	ok := s != "" && len(s) < 255 && strings.ContainsFunc(s, isLetter)
	for label := range strings.SplitSeq(s, ".") {
		ok = ok && label != "" && label[0] != '-' && label[len(label)-1] != '-' && strings.IndexFunc(label, notHostRune) < 0
	}
	if !ok {
		return "", fmt.Errorf("%s is not a valid domain", s)
	}
	return s, nil
}

func isLetter(r rune) bool    { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }
func notHostRune(r rune) bool { return !isLetter(r) && (r < '0' || r > '9') && r != '-' && r != '_' }

// checkSysctl lets the daemon say which ones it can set.
func checkSysctl(s string) error {
	if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
		return fmt.Errorf("sysctl '%s' is not NAME=VALUE", s)
	}
	return nil
}

// EnvVar is a flag that appends environment variables to to, as -e does.
func EnvVar(to *[]string) pflag.Value { return envVar{to} }

type envVar struct{ to *[]string }

func (e envVar) Set(s string) error {
	s, err := checkEnv(s)
	*e.to = append(*e.to, s)
	return err
}

func (e envVar) Type() string   { return "list" }
func (e envVar) String() string { return "" }
