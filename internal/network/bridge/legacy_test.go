package bridge

import "testing"

func TestParseLegacy(t *testing.T) {
	const docker = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n"
	tests := map[string]struct {
		rules, family string
		want          []string
	}{
		"nothing":              {"", "ip", nil},
		"accepts":              {"-P INPUT ACCEPT\n-P FORWARD ACCEPT\n", "ip", nil},
		"Docker":               {docker, "ip", []string{"iptables-legacy -I DOCKER-USER -i hyper0 -j ACCEPT && iptables-legacy -I DOCKER-USER -o hyper0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}},
		"knows the bridge":     {docker + "-A DOCKER-USER -i hyper0 -j ACCEPT\n", "ip", nil},
		"knows another bridge": {docker + "-A DOCKER-USER -i hyper00 -j ACCEPT\n", "ip", []string{"iptables-legacy -I DOCKER-USER -i hyper0 -j ACCEPT && iptables-legacy -I DOCKER-USER -o hyper0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}},
		"input":                {"-P INPUT DROP\n-P FORWARD ACCEPT\n", "ip", []string{"iptables-legacy -I INPUT -i hyper0 -p udp --dport 53 -j ACCEPT && iptables-legacy -I INPUT -i hyper0 -p tcp --dport 53 -j ACCEPT"}},
		"input, IPv6":          {"-P INPUT DROP\n-P FORWARD ACCEPT\n", "ip6", nil},
	}
	for name, tt := range tests {
		got := parseLegacy(tt.rules, "iptables-legacy", tt.family, "hyper0")
		if len(got) != len(tt.want) {
			t.Errorf("%s: %+v", name, got)
			continue
		}
		for i, b := range got {
			if b.Fix != tt.want[i] {
				t.Errorf("%s: fix %q, want %q", name, b.Fix, tt.want[i])
			}
		}
	}
}
