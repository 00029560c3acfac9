package bridge_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/bridge"
)

func nft(t *testing.T, rules string) {
	t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, rules)
	}
}

// TestBlockers: other firewalls that drop by default are found, named, and
// what is proposed lets pods through.
func TestBlockers(t *testing.T) {
	s := newSite(t, bridge.Config{})
	serve(t, s.outside, ":7000")
	works := func() bool {
		_, err := s.podA.ask("tcp", "192.0.2.2:7000", patience)
		return err == nil && s.podA.lookup(s.a.DNS[0], "host.hyper.internal.") != ""
	}
	tests := []struct {
		name, rules string
		where       string // "": blocks nothing
		table       string
	}{
		{"accepts", `table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; }; }`, "", "ip filter"},
		{"NAT chain", `table ip nat { chain PREROUTING { type nat hook prerouting priority -100; policy drop; udp dport 53 accept; accept; }; }`, "", "ip nat"},
		{"plain nft", `table inet fw { chain f { type filter hook forward priority 0; policy drop; }; }`, "inet fw f", "inet fw"},
		{"plain nft, input", `table inet fw { chain i { type filter hook input priority 0; policy drop; icmpv6 type nd-neighbor-solicit accept; }; }`, "inet fw i", "inet fw"},
		{"names the bridge", `table inet fw { chain f { type filter hook forward priority 0; policy drop; iifname hyper0 accept; oifname hyper0 accept; }; }`, "", "inet fw"},
		{"names the bridge in a set", `table inet fw { set ok { type ifname; elements = { hyper0, eth1 }; }; chain f { type filter hook forward priority 0; policy drop; iifname @ok accept; oifname @ok accept; }; }`, "", "inet fw"},
		{"names another", `table inet fw { chain f { type filter hook forward priority 0; policy drop; iifname hyper00 accept; }; }`, "inet fw f", "inet fw"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nft(t, tt.rules)
			defer nft(t, "delete table "+tt.table)
			got, err := bridge.Blockers("")
			must(t, err)
			if tt.where == "" {
				if len(got) != 0 || !works() {
					t.Errorf("%+v; pods work: %v", got, works())
				}
				return
			}
			if len(got) != 1 || got[0].Where != tt.where {
				t.Fatalf("%+v, want %s", got, tt.where)
			}
			if works() {
				t.Error("blocks nothing")
			}
			must(t, run("sh", "-c", got[0].Fix))
			if got, err := bridge.Blockers(""); err != nil || len(got) != 0 {
				t.Errorf("after the fix: %+v, %v", got, err)
			}
			if !works() {
				t.Error("the fix does not help")
			}
		})
	}
}

// TestBlockersOfTheUsualFirewalls needs none of them: their chains are enough.
func TestBlockersOfTheUsualFirewalls(t *testing.T) {
	needHost(t)
	const hook = "{ type filter hook forward priority 0; policy drop; }"
	for name, tt := range map[string]struct{ rules, table, where, fix string }{
		"docker":    {"table ip filter { chain DOCKER-USER {}; chain FORWARD " + hook + "; }", "ip filter", "ip filter FORWARD (Docker)", "iptables -I DOCKER-USER -i hyper0"},
		"docker 6":  {"table ip6 filter { chain DOCKER-USER {}; chain FORWARD " + hook + "; }", "ip6 filter", "ip6 filter FORWARD (Docker)", "ip6tables -I DOCKER-USER -i hyper0"},
		"ufw":       {"table ip filter { chain ufw-user-forward {}; chain FORWARD " + hook + "; }", "ip filter", "ip filter FORWARD (ufw)", "ufw route allow in on hyper0"},
		"iptables":  {"table ip filter { chain FORWARD " + hook + "; }", "ip filter", "ip filter FORWARD (iptables)", "iptables -I FORWARD -i hyper0"},
		"firewalld": {"table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; reject; }; }", "inet firewalld", "inet firewalld filter_FORWARD (firewalld)", "firewall-cmd --permanent"},
	} {
		t.Run(name, func(t *testing.T) {
			nft(t, tt.rules)
			defer nft(t, "delete table "+tt.table)
			start := time.Now()
			got, err := bridge.Blockers("")
			must(t, err)
			if len(got) != 1 || got[0].Where != tt.where || !strings.HasPrefix(got[0].Fix, tt.fix) {
				t.Errorf("%+v", got)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestBlockersOfLegacyIptables(t *testing.T) {
	if _, err := exec.LookPath("iptables-legacy"); err != nil {
		t.Skip(err)
	}
	needHost(t)
	iptables := func(args ...string) { t.Helper(); must(t, run("iptables-legacy", args...)) }
	iptables("-P", "FORWARD", "DROP")
	defer func() { iptables("-F"); iptables("-P", "FORWARD", "ACCEPT") }()
	got, err := bridge.Blockers("")
	must(t, err)
	if len(got) != 1 || got[0].Where != "ip filter FORWARD (iptables-legacy)" {
		t.Fatalf("%+v", got)
	}
	must(t, run("sh", "-c", got[0].Fix))
	got, err = bridge.Blockers("")
	must(t, err)
	if diff := cmp.Diff([]network.Blocker(nil), got); diff != "" {
		t.Error(diff)
	}
}
