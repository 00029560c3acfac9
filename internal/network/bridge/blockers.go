package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/hyper-run/hyper/internal/network"
)

// Blockers looks for chains of others that stand in the way of pods on a
// bridge (default "hyper0"): of what they send and receive through the host,
// and of their queries to its name server. Such a chain drops what it does
// not know and does not know the bridge; in netfilter one drop is final, no
// rule of ours can let the packet through. Nothing is changed.
func Blockers(bridge string) ([]network.Blocker, error) {
	setDefault(&bridge, "hyper0")
	c, err := nftables.New()
	if err != nil {
		return nil, rulesError("read", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, rulesError("read", err)
	}
	var found []network.Blocker
	for _, chain := range chains {
		if !drops(chain) {
			continue
		}
		known, err := mentions(c, chain.Table, chains, bridge)
		if err != nil {
			return nil, rulesError("read", err)
		}
		if !known {
			found = append(found, blocker(chain, chains, bridge))
		}
	}
	legacy, err := legacyBlockers(bridge)
	return append(found, legacy...), err
}

// drops says whether what no rule of the chain accepts is lost. firewalld's
// chains accept as a policy and end with a rejecting rule.
func drops(c *nftables.Chain) bool {
	if c.Hooknum == nil || c.Type != nftables.ChainTypeFilter {
		return false
	}
	family := c.Table.Family
	forward := *c.Hooknum == *nftables.ChainHookForward
	input := *c.Hooknum == *nftables.ChainHookInput
	switch {
	case forward && (family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6 || family == nftables.TableFamilyINet):
	case input && (family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyINet): // DNS is asked by IPv4
	default:
		return false
	}
	dropPolicy := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
	return dropPolicy || isFirewalld(c)
}

func isFirewalld(c *nftables.Chain) bool {
	return c.Table.Name == "firewalld" && (c.Name == "filter_FORWARD" || c.Name == "filter_INPUT")
}

// mentions says whether a rule or set of the table names the bridge: then
// its owner has thought of it.
func mentions(c *nftables.Conn, t *nftables.Table, chains []*nftables.Chain, bridge string) (bool, error) {
	name := append([]byte(bridge), 0)
	for _, chain := range chains {
		if chain.Table.Name != t.Name || chain.Table.Family != t.Family {
			continue
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return false, err
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if cmp, ok := e.(*expr.Cmp); ok && bytes.HasPrefix(append(cmp.Data, 0), name) {
					return true, nil
				}
			}
		}
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return false, err
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return false, err
		}
		for _, e := range elements {
			if bytes.Contains(e.Key, name) {
				return true, nil
			}
		}
	}
	return false, nil
}

// blocker knows the usual firewalls by their chains.
func blocker(c *nftables.Chain, chains []*nftables.Chain, bridge string) network.Blocker {
	family := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	}[c.Table.Family]
	has := func(name string) bool {
		for _, other := range chains {
			if other.Name == name && other.Table.Name == c.Table.Name && other.Table.Family == c.Table.Family {
				return true
			}
		}
		return false
	}
	where := fmt.Sprintf("%s %s %s", family, c.Table.Name, c.Name)
	iptables := "iptables"
	if family == "ip6" {
		iptables = "ip6tables"
	}
	switch {
	case isFirewalld(c):
		return network.Blocker{Where: where + " (firewalld)", Fix: fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)}
	case has("ufw-user-forward") || has("ufw6-user-forward"):
		return network.Blocker{Where: where + " (ufw)", Fix: fmt.Sprintf("ufw route allow in on %[1]s && ufw allow in on %[1]s to any port 53", bridge)}
	case has("DOCKER-USER") && c.Name == "FORWARD":
		return network.Blocker{Where: where + " (Docker)", Fix: iptablesFix(iptables, "DOCKER-USER", bridge)}
	case c.Table.Name == "filter" && family != "inet" && (c.Name == "FORWARD" || c.Name == "INPUT"):
		return network.Blocker{Where: where + " (iptables)", Fix: iptablesFix(iptables, c.Name, bridge)}
	}
	insert := fmt.Sprintf("nft insert rule %s", where)
	if *c.Hooknum == *nftables.ChainHookInput {
		return network.Blocker{Where: where, Fix: fmt.Sprintf("%[1]s iifname %[2]s udp dport 53 accept && %[1]s iifname %[2]s tcp dport 53 accept", insert, bridge)}
	}
	return network.Blocker{Where: where, Fix: fmt.Sprintf("%[1]s iifname %[2]s accept && %[1]s oifname %[2]s ct state established,related accept", insert, bridge)}
}

func iptablesFix(command, chain, bridge string) string {
	insert := command + " -I " + chain
	if chain == "INPUT" {
		return fmt.Sprintf("%[1]s -i %[2]s -p udp --dport 53 -j ACCEPT && %[1]s -i %[2]s -p tcp --dport 53 -j ACCEPT", insert, bridge)
	}
	return fmt.Sprintf("%[1]s -i %[2]s -j ACCEPT && %[1]s -o %[2]s -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", insert, bridge)
}

// legacyBlockers reads the rules of the old iptables, which are not in
// nftables; only its own program can list them.
func legacyBlockers(bridge string) ([]network.Blocker, error) {
	var found []network.Blocker
	for _, v := range []struct{ names, command, family string }{
		{"/proc/net/ip_tables_names", "iptables-legacy", "ip"},
		{"/proc/net/ip6_tables_names", "ip6tables-legacy", "ip6"},
	} {
		names, err := os.ReadFile(v.names)
		if err != nil || !strings.Contains(string(names), "filter") {
			continue
		}
		out, err := exec.Command(v.command, "-S").Output()
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list rules with %s: %w", v.command, err)
		}
		found = append(found, parseLegacy(string(out), v.command, v.family, bridge)...)
	}
	return found, nil
}

// parseLegacy reads the output of `iptables -S`.
func parseLegacy(rules, command, family, bridge string) []network.Blocker {
	fields := strings.Fields(rules)
	for _, f := range fields {
		if f == bridge {
			return nil
		}
	}
	var found []network.Blocker
	for _, chain := range []string{"FORWARD", "INPUT"} {
		if !strings.Contains(rules, "-P "+chain+" DROP") || chain == "INPUT" && family == "ip6" {
			continue
		}
		target := chain
		if chain == "FORWARD" && strings.Contains(rules, "-N DOCKER-USER") {
			target = "DOCKER-USER"
		}
		found = append(found, network.Blocker{
			Where: fmt.Sprintf("%s filter %s (%s)", family, chain, command),
			Fix:   iptablesFix(command, target, bridge),
		})
	}
	return found
}
