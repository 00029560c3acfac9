// Package stats is the arithmetic of the benchmarks: quantiles, and numbers
// written so that they can be compared. It measures nothing.
package stats

import (
	"fmt"
	"slices"
	"time"
)

// Quantile returns the q-quantile by the nearest rank. values is not empty.
func Quantile(values []float64, q float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}

// Format writes v with as many digits as mean something.
func Format(v float64, unit string) string {
	if v < 10 {
		return fmt.Sprintf("%.2f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

// Milliseconds is d as a number.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Megabytes is n bytes as a number of MiB.
func Megabytes(n int64) float64 { return float64(n) / (1 << 20) }
