package ipam_test

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/hyper-run/hyper/internal/network/ipam"
)

func pool(t *testing.T, subnet string) *ipam.Pool {
	t.Helper()
	p, err := ipam.New(netip.MustParsePrefix(subnet))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewRefuses(t *testing.T) {
	for _, s := range []string{"10.0.0.0/31", "10.0.0.0/32", "10.0.0.1/24", "0.0.0.0/0", "fd00::/64"} {
		if _, err := ipam.New(netip.MustParsePrefix(s)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("New(%s): %v, want an invalid argument", s, err)
		}
	}
	if _, err := ipam.New(netip.Prefix{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("New of no subnet: %v", err)
	}
}

func TestReserveUntilExhausted(t *testing.T) {
	for subnet, want := range map[string]int{"10.0.0.0/30": 1, "10.0.0.8/29": 5, "10.1.0.0/24": 253, "10.2.0.0/20": 4093} {
		p := pool(t, subnet)
		seen := map[netip.Addr]bool{p.Gateway(): true}
		for i := range want {
			a, err := p.Reserve(strconv.Itoa(i))
			if err != nil {
				t.Fatalf("%s: address %d: %v", subnet, i, err)
			}
			if seen[a] || !p.Prefix().Contains(a) || a == p.Prefix().Addr() {
				t.Fatalf("%s: address %d is %v", subnet, i, a)
			}
			seen[a] = true
		}
		if _, err := p.Reserve("one more"); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: after %d: %v, want exhausted", subnet, want, err)
		}
		p.Release(netip.MustParseAddr("192.0.2.1"), "0")
		if p.Len() != want {
			t.Errorf("%s: a foreign address was released", subnet)
		}
	}
}

func TestReusedAsLateAsPossible(t *testing.T) {
	p := pool(t, "10.0.0.0/28") // 13 addresses
	first, _ := p.Reserve("a")
	p.Release(first, "a")
	for i := range 12 {
		a, err := p.Reserve(strconv.Itoa(i))
		if err != nil || a == first {
			t.Fatalf("address %d: %v, %v; %v was just given back", i, a, err, first)
		}
	}
	if a, err := p.Reserve("last"); err != nil || a != first {
		t.Errorf("the last free address: %v, %v; want %v", a, err, first)
	}
}

func TestTakeAndRelease(t *testing.T) {
	p := pool(t, "10.0.0.0/24")
	a := netip.MustParseAddr("10.0.0.9")
	for range 2 {
		if err := p.Take(a, "web"); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Take(a, "db"); !errdefs.IsConflict(err) {
		t.Errorf("second owner: %v, want a conflict", err)
	}
	for _, s := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.4", "::1"} {
		if err := p.Take(netip.MustParseAddr(s), "x"); !errdefs.IsOutOfRange(err) {
			t.Errorf("Take(%s): %v, want out of range", s, err)
		}
	}
	p.Release(a, "db")
	if p.Len() != 1 {
		t.Error("one owner released the address of another")
	}
	if b, _ := p.Reserve("next"); b.Compare(a) <= 0 {
		t.Errorf("Reserve after Take(%v) gave %v, want a later one", a, b)
	}
	p.Release(a, "web")
	p.Release(a, "web")
	if p.Len() != 1 {
		t.Errorf("%d in use, want 1", p.Len())
	}
}

func TestAtOffset(t *testing.T) {
	for subnet, want := range map[string]string{
		"172.30.0.0/16":         "172.30.1.2",
		"10.0.0.0/8":            "10.0.1.2",
		"fd12:3456:789a::/64":   "fd12:3456:789a::102",
		"fd12:3456:789a:1::/64": "fd12:3456:789a:1::102",
	} {
		p := netip.MustParsePrefix(subnet)
		a := ipam.At(p, 258)
		if a != netip.MustParseAddr(want) || ipam.Offset(p, a) != 258 {
			t.Errorf("At(%s, 258) = %v, Offset %d; want %s", subnet, a, ipam.Offset(p, a), want)
		}
	}
}
