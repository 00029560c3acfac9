package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The vocabulary of rules.go: each function is a statement of nft(8), or a
// match that the statements after it depend on.
type statement []expr.Any

// Registers of 16 bytes.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

func add(c *nftables.Conn, chain *nftables.Chain, parts ...statement) {
	c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: slices.Concat(parts...)})
}

func accept() statement { return statement{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() statement   { return statement{&expr.Verdict{Kind: expr.VerdictDrop}} }

// addReject answers what matches, so that a program in a pod need not wait
// for a time-out. TCP gets a reset: after an ICMPv6 error a client still
// sends its SYN a second time.
func addReject(c *nftables.Conn, chain *nftables.Chain, match ...statement) {
	reset := append(protocol(unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	add(c, chain, append(slices.Clone(match), reset)...)
	other := statement{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	add(c, chain, append(slices.Clone(match), other)...)
}

func masquerade() statement { return statement{&expr.Masq{}} }

func redirect(port uint16) statement {
	return statement{
		&expr.Immediate{Register: reg1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: reg1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

func meta(key expr.MetaKey, op expr.CmpOp, value []byte) statement {
	return statement{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: value},
	}
}

func iif(name string) statement    { return meta(expr.MetaKeyIIFNAME, expr.CmpOpEq, ifname(name)) }
func notIif(name string) statement { return meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, ifname(name)) }
func oif(name string) statement    { return meta(expr.MetaKeyOIFNAME, expr.CmpOpEq, ifname(name)) }
func notOif(name string) statement { return meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, ifname(name)) }

// notIifPrefix compares only as many bytes as there are: nft's "prefix*".
func notIifPrefix(prefix string) statement {
	return meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, []byte(prefix))
}

func etherType(t uint16) statement {
	return meta(expr.MetaKeyPROTOCOL, expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, t))
}

func protocol(p byte) statement { return meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{p}) }

// ifname is a name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func netLayer(offset, length uint32) *expr.Payload {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length, DestRegister: reg1}
}

func linkLayer(offset, length uint32) *expr.Payload {
	return &expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length, DestRegister: reg1}
}

func transport(offset, length uint32) *expr.Payload {
	return &expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length, DestRegister: reg1}
}

func from(p netip.Prefix) statement { return address(p, ip4Source, ip6Source) }
func to(p netip.Prefix) statement   { return address(p, ip4Destination, ip6Destination) }

func address(p netip.Prefix, offset4, offset6 uint32) statement {
	family, field := byte(unix.NFPROTO_IPV4), netLayer(offset4, 4)
	if p.Addr().Is6() {
		family, field = unix.NFPROTO_IPV6, netLayer(offset6, 16)
	}
	return append(meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{family}), masked(field, p)...)
}

// masked matches a field that lies in a prefix.
func masked(field *expr.Payload, p netip.Prefix) statement {
	length := p.Addr().BitLen()
	return statement{
		field,
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: uint32(length / 8),
			Mask: net.CIDRMask(p.Bits(), length), Xor: make([]byte, length/8),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func dport(proto byte, port uint16) statement {
	return append(protocol(proto),
		transport(transportDest, 2),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

func icmpType(proto, typ byte) statement {
	return append(protocol(proto),
		transport(0, 1),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{typ}})
}

// ctState matches connections in any of the states; their bits are in the
// host's byte order.
func ctState(states uint32) statement {
	return statement{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg1},
		&expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

// notIn matches when the pair of input port and field is not in the set.
func notIn(set *nftables.Set, field *expr.Payload) statement {
	field.DestRegister = reg2
	return statement{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		field,
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, Invert: true},
	}
}
