package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/hyper-run/hyper/internal/network"
	"github.com/hyper-run/hyper/internal/network/ipam"
)

const dnsPort = 53

// metadata are the addresses at which clouds tell a machine its credentials
// (AWS, GCP, Azure and others: link-local; Alibaba; Oracle; Azure's wire
// server; AWS and GCP on IPv6). A pod is not that machine.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("100.100.100.200/32"),
	netip.MustParsePrefix("192.0.0.192/32"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("fd00:ec2::254/128"),
	netip.MustParsePrefix("fd20:ce::254/128"),
}

// Types of ICMP messages, RFC 792 and 4443, 4861.
const (
	icmpEcho       = 8
	icmp6Echo      = 128
	icmp6RouterAdv = 134
	icmp6NeighbSol = 135
	icmp6NeighbAdv = 136
	etherTypeARP   = unix.ETH_P_ARP
	etherTypeIPv4  = unix.ETH_P_IP
	etherTypeIPv6  = unix.ETH_P_IPV6
	bridgePriority = -300 // before all else, as nft's "dstnat" of the bridge family
	arpSenderIP    = 14   // offset in the packet, RFC 826 for Ethernet and IPv4
	etherSource    = 6
	ip4Source      = 12
	ip4Destination = 16
	ip6Source      = 8
	ip6Destination = 24
	transportDest  = 2
	ctEstablished  = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
)

func (d *Driver) inetTable() *nftables.Table {
	return &nftables.Table{Name: d.cfg.Table, Family: nftables.TableFamilyINet}
}

func (d *Driver) bridgeTable() *nftables.Table {
	return &nftables.Table{Name: d.cfg.Table, Family: nftables.TableFamilyBridge}
}

// writeRulesLocked replaces both tables in one transaction: there is no
// moment without rules, and what was added or lost in between is put right.
func (d *Driver) writeRulesLocked() error {
	return rulesError("write", d.rules.do(d.addAllLocked))
}

func (d *Driver) addAllLocked(c *nftables.Conn) error {
	for _, t := range []*nftables.Table{d.inetTable(), d.bridgeTable()} {
		c.AddTable(t) // so that there is one to delete
		c.DelTable(t)
		c.AddTable(t)
	}
	if err := d.addRules(c, d.dns.Addr()); err != nil {
		return err
	}
	for _, a := range d.portsLocked() {
		if err := d.addElements(c, a); err != nil {
			return err
		}
	}
	return c.Flush()
}

func (d *Driver) addRules(c *nftables.Conn, server netip.AddrPort) error {
	d.addNAT(c, server.Port())
	d.addForward(c)
	d.addInput(c, server)
	return d.addAntiSpoof(c)
}

// Probe says whether this host can do what the driver needs, without leaving
// anything: one transaction writes all rules and takes them away again. The
// error is an *network.UnavailableError.
func Probe() error {
	d, err := New(Config{Table: "hyper-probe"})
	if err != nil {
		return err
	}
	if d.pool, err = ipam.New(candidates[0]); err != nil {
		return err
	}
	d.v6 = uniqueLocal(d.cfg.Bridge)
	if err := checkTun(); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return rulesError("try", err)
	}
	for _, t := range []*nftables.Table{d.inetTable(), d.bridgeTable()} {
		c.AddTable(t)
	}
	if err := d.addRules(c, netip.AddrPortFrom(d.pool.Gateway(), dnsPort+1)); err != nil {
		return err
	}
	for _, t := range []*nftables.Table{d.inetTable(), d.bridgeTable()} {
		c.DelTable(t)
	}
	return rulesError("try", c.Flush())
}

// removeRules deletes both tables; nil when there are none.
func (d *Driver) removeRules() error {
	return rulesError("remove", d.rules.do(func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{d.inetTable(), d.bridgeTable()} {
			c.AddTable(t)
			c.DelTable(t)
		}
		return c.Flush()
	}))
}

func rulesError(verb string, err error) error {
	if err == nil {
		return nil
	}
	return unavailable(verb+" nftables rules", err,
		"modprobe -a nf_tables nft_ct nft_masq nft_redir nft_reject_inet")
}

// addNAT: to the outside pods have the host's address; within, their own.
func (d *Driver) addNAT(c *nftables.Conn, port uint16) {
	t := d.inetTable()
	if port != dnsPort {
		chain := c.AddChain(&nftables.Chain{
			Name: "dnat", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			add(c, chain, iif(d.cfg.Bridge), to(hostPrefix(d.pool.Gateway())), dport(proto, dnsPort), redirect(port))
		}
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "snat", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	add(c, chain, from(d.pool.Prefix()), notOif(d.cfg.Bridge), masquerade())
	if d.v6.IsValid() {
		add(c, chain, from(d.v6), notOif(d.cfg.Bridge), masquerade())
	}
}

// addForward: pods reach each other and the outside, but no cloud's
// metadata; the outside reaches a pod only to answer it.
func (d *Driver) addForward(c *nftables.Conn) {
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: d.inetTable(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for _, m := range metadata {
		addReject(c, chain, iif(d.cfg.Bridge), to(m))
	}
	add(c, chain, iif(d.cfg.Bridge), accept())
	add(c, chain, oif(d.cfg.Bridge), ctState(ctEstablished), accept())
	add(c, chain, oif(d.cfg.Bridge), drop())
}

// addInput: of the host's own services pods reach DNS. Ping works, and what
// IPv6 needs to find the gateway.
func (d *Driver) addInput(c *nftables.Conn, server netip.AddrPort) {
	chain := c.AddChain(&nftables.Chain{
		Name: "input", Table: d.inetTable(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	add(c, chain, notIif(d.cfg.Bridge), accept())
	add(c, chain, ctState(ctEstablished), accept())
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		add(c, chain, to(hostPrefix(server.Addr())), dport(proto, server.Port()), accept())
	}
	add(c, chain, icmpType(unix.IPPROTO_ICMP, icmpEcho), accept())
	for _, typ := range []byte{icmp6Echo, icmp6NeighbSol, icmp6NeighbAdv} {
		add(c, chain, icmpType(unix.IPPROTO_ICMPV6, typ), accept())
	}
	addReject(c, chain)
}

// addAntiSpoof: a port sends with the addresses it was given, and speaks
// IPv4, ARP and IPv6 only. The checks sit before the bridge learns.
func (d *Driver) addAntiSpoof(c *nftables.Conn) error {
	for _, s := range []*nftables.Set{d.macs(), d.addrs4(), d.addrs6()} {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "ports", Table: d.bridgeTable(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(bridgePriority),
	})
	add(c, chain, notIifPrefix(d.cfg.TapPrefix), accept())
	add(c, chain, notIn(d.macs(), linkLayer(etherSource, 6)), drop())
	add(c, chain, etherType(etherTypeIPv4), notIn(d.addrs4(), netLayer(ip4Source, 4)), drop())
	add(c, chain, etherType(etherTypeIPv4), accept())
	add(c, chain, etherType(etherTypeARP), notIn(d.addrs4(), netLayer(arpSenderIP, 4)), drop())
	add(c, chain, etherType(etherTypeARP), accept())
	add(c, chain, etherType(etherTypeIPv6), icmpType(unix.IPPROTO_ICMPV6, icmp6RouterAdv), drop())
	for _, p := range []string{"fe80::/10", "::/128"} { // neighbour discovery
		add(c, chain, etherType(etherTypeIPv6), masked(netLayer(ip6Source, 16), netip.MustParsePrefix(p)), accept())
	}
	add(c, chain, etherType(etherTypeIPv6), notIn(d.addrs6(), netLayer(ip6Source, 16)), drop())
	add(c, chain, etherType(etherTypeIPv6), accept())
	add(c, chain, drop())
	return nil
}

func (d *Driver) macs() *nftables.Set   { return d.portSet("macs", nftables.TypeEtherAddr) }
func (d *Driver) addrs4() *nftables.Set { return d.portSet("addrs4", nftables.TypeIPAddr) }
func (d *Driver) addrs6() *nftables.Set { return d.portSet("addrs6", nftables.TypeIP6Addr) }

// portSet is a set of pairs: a port and an address it may send from.
func (d *Driver) portSet(name string, address nftables.SetDatatype) *nftables.Set {
	return &nftables.Set{
		Table: d.bridgeTable(), Name: name, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeIFName, address),
	}
}

// allow lets the addresses of a port through, disallow no longer. Both are
// idempotent.
func (d *Driver) allow(a network.Attachment) error {
	return rulesError("add to", d.rules.do(func(c *nftables.Conn) error {
		if err := d.addElements(c, a); err != nil {
			return err
		}
		return c.Flush()
	}))
}

func (d *Driver) disallow(a network.Attachment) error {
	err := d.rules.do(func(c *nftables.Conn) error {
		for _, e := range d.elements(a) {
			if err := c.SetDeleteElements(e.set, []nftables.SetElement{e.element}); err != nil {
				return fmt.Errorf("nftables set %s: %w", e.set.Name, err)
			}
		}
		return c.Flush()
	})
	// They come and go together: when one is not there, none is.
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return rulesError("remove from", err)
}

// tablesExist says whether both tables are there; who flushes a firewall
// takes them whole.
func (d *Driver) tablesExist() bool {
	return d.rules.do(func(c *nftables.Conn) error {
		for _, t := range []*nftables.Table{d.inetTable(), d.bridgeTable()} {
			if _, err := c.ListTableOfFamily(t.Name, t.Family); err != nil {
				return err
			}
		}
		return nil
	}) == nil
}

// A ruleConn is a connection to nftables that stays open: when one is
// closed, the kernel waits until what was deleted before by anybody is gone (some ms),
// and others with it.
type ruleConn struct {
	mu   sync.Mutex
	conn *nftables.Conn // nil when closed
}

// do has f use the connection, alone. After an error there may be commands in it, or
// replies to come, that must not meet the next user.
func (r *ruleConn) do(f func(c *nftables.Conn) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		c, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		r.conn = c
	}
	err := f(r.conn)
	if err != nil {
		_ = r.conn.CloseLasting() // f's error is the one to know
		r.conn = nil
	}
	return err
}

func (r *ruleConn) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == nil {
		return nil
	}
	err := r.conn.CloseLasting()
	r.conn = nil
	return err
}

func (d *Driver) addElements(c *nftables.Conn, a network.Attachment) error {
	for _, e := range d.elements(a) {
		if err := c.SetAddElements(e.set, []nftables.SetElement{e.element}); err != nil {
			return fmt.Errorf("nftables set %s: %w", e.set.Name, err)
		}
	}
	return nil
}

type portElement struct {
	set     *nftables.Set
	element nftables.SetElement
}

func (d *Driver) elements(a network.Attachment) []portElement {
	pair := func(address []byte) nftables.SetElement {
		key := append(ifname(a.Device), address...)
		for len(key)%4 != 0 { // parts are padded to registers of 4 bytes
			key = append(key, 0)
		}
		return nftables.SetElement{Key: key}
	}
	list := []portElement{{d.macs(), pair(a.MAC)}}
	for _, p := range a.Addrs {
		set := d.addrs4()
		if p.Addr().Is6() {
			set = d.addrs6()
		}
		list = append(list, portElement{set, pair(p.Addr().AsSlice())})
	}
	return list
}
