package format

import (
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// ShortID is the first 12 digits of an identifier, without its algorithm.
func ShortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// Ellipsis cuts s to at most n characters, the last of them "…".
func Ellipsis(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	if n <= 1 {
		return string(r[:max(n, 0)])
	}
	return string(r[:n-1]) + "…"
}

// Ago is how long ago something was, in words.
func Ago(t time.Time) string {
	return units.HumanDuration(time.Since(t)) + " ago"
}

// Size is a number of bytes in 3 digits and a decimal unit: 1.44MB.
func Size(bytes int64) string { return units.HumanSizeWithPrecision(float64(bytes), 3) }

// Percent is a number with 2 decimals and a percent sign.
func Percent(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) + "%" }
