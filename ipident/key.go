package ipident

import "net/netip"

// The parts of IPv6 whose addresses each stand for one IPv4 address, which is
// in the bits that [keyed] takes out.
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")      // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")      // RFC 4380
)

// AppendKey appends the client's key to dst and returns the extended slice:
// [AppendKey] of its address, or "unix" or "unknown" for a client that has
// none. It never appends nothing.
func (r Result) AppendKey(dst []byte, ipv4Prefix, ipv6Prefix int) []byte {
	if !r.Addr.IsValid() {
		return append(dst, r.name()...)
	}
	return AppendKey(dst, r.Addr, ipv4Prefix, ipv6Prefix)
}

// AppendKey appends the canonical text of addr, masked to its first ipv4Prefix
// bits (0 to 32) or ipv6Prefix bits (0 to 128), and returns the extended slice:
// "192.0.2.0/24", "2001:db8::/64", or the bare address where the prefix is full
// length. Prefixes out of range count as the nearest in range. The zero Addr is
// "unknown". It allocates only to grow dst.
//
// Addresses that are one client's in different spelling have equal keys: zones
// do not count, an IPv4-mapped address is keyed as the IPv4 address, and so is
// one of NAT64 (64:ff9b::/96 and 64:ff9b:1::/48), 6to4 (2002::/16) or Teredo
// (2001::/32) as the IPv4 address inside it. Masking those as IPv6 would lock
// together all that is IPv4, or, in 6to4, give the owner of one IPv4 address
// 65,536 keys.
func AppendKey(dst []byte, addr netip.Addr, ipv4Prefix, ipv6Prefix int) []byte {
	if !addr.IsValid() {
		return append(dst, nameUnknown...)
	}
	addr = keyed(addr)
	bits := ipv6Prefix
	if addr.Is4() {
		bits = ipv4Prefix
	}
	bits = max(bits, 0)
	if bits >= addr.BitLen() {
		return addr.AppendTo(dst)
	}
	return netip.PrefixFrom(addr, bits).Masked().AppendTo(dst)
}

// keyed returns the address that stands for addr in keys. Only keys look into
// an address: for trust and in logs it is the one that was attested.
func keyed(addr netip.Addr) netip.Addr {
	addr = canonical(addr)
	if addr.Is4() {
		return addr
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:]))
	case nat64Local.Contains(addr):
		return netip.AddrFrom4(translated(b))
	case sixToFour.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:]))
	case teredo.Contains(addr):
		// The client's address is written inverted, so that no NAT on the
		// way rewrites it.
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	}
	return addr
}

// translated returns the IPv4 address in an address of NAT64's prefix for local
// use. Its operator chose the length of the prefix, 48 to 96 bits, and with it
// the place (RFC 6052, section 2.2): up to 64 bits the IPv4 address goes around
// byte 8, which is zero, and zeros follow it. No host has an IPv4 address that
// ends in three zeros, so zeros at the end tell that it is not at the end.
// Where an address ends in a zero the next shorter prefix is assumed: that is
// still one key for each address of an operator who uses one length.
func translated(b [16]byte) [4]byte {
	switch {
	case b[8] != 0 || b[13] != 0 || b[14] != 0 || b[15] != 0:
		return [4]byte(b[12:]) // a prefix of 96 bits
	case b[12] != 0:
		return [4]byte(b[9:]) // 64
	case b[11] != 0:
		return [4]byte{b[7], b[9], b[10], b[11]} // 56
	default:
		return [4]byte{b[6], b[7], b[9], b[10]} // 48
	}
}

// canonical returns addr without zone and not IPv4-mapped, for addresses that
// callers bring along and parseHost has not seen.
func canonical(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }
