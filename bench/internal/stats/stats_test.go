package stats

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // 100 … 1
	}
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.99, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{3, 1, 2}, 1, 3},
		{hundred, 0.5, 51},
		{hundred, 0.9, 91},
		{hundred, 0.99, 100},
	} {
		if got := Quantile(c.values, c.q); got != c.want {
			t.Errorf("Quantile(%v, %v) = %v, want %v", c.values, c.q, got, c.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("Quantile sorted its argument")
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Format(1.234, "ms"), "1.23 ms"},
		{Format(9.99, "MB"), "9.99 MB"},
		{Format(214.4, "ms"), "214 ms"},
		{Format(Milliseconds(1500*time.Microsecond), "ms"), "1.50 ms"},
		{Format(Megabytes(3<<20), "MB"), "3.00 MB"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
