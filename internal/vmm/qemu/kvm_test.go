package qemu

import (
	"testing"
	"time"
)

// The answer depends on the host; that there is one, soon and always the
// same, does not.
func TestProbeKVM(t *testing.T) {
	start := time.Now()
	works, why := probeKVM()
	t.Logf("works %v after %v: %s", works, time.Since(start), why)
	if why == "" {
		t.Error("no reason")
	}
	if time.Since(start) > 2*probePatience {
		t.Error("took too long")
	}
	if again, _ := probeKVM(); again != works {
		t.Errorf("first %v, then %v", works, again)
	}
}

func TestTSC(t *testing.T) {
	a := tscKHz()
	t.Logf("TSC at %d kHz", a)
	b := tscKHz()
	if (a == 0) != (b == 0) || max(a, b)-min(a, b) > a/1000 {
		t.Errorf("measured %d and %d kHz", a, b)
	}
}
