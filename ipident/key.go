package ipident

import "net/netip"

// nat64 is the well-known prefix of RFC 6052. Its last 32 bits are an IPv4
// address.
var nat64 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x00, 1: 0x64, 2: 0xff, 3: 0x9b}), 96)

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
// one within 64:ff9b::/96. Masking those as IPv6 would lock together all that
// is IPv4.
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

// keyed returns the address that stands for addr in keys. Only keys look
// through NAT64: for trust and in logs an address is the one that was attested.
func keyed(addr netip.Addr) netip.Addr {
	addr = canonical(addr)
	if nat64.Contains(addr) {
		b := addr.As16()
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return addr
}

// canonical returns addr without zone and not IPv4-mapped, for addresses that
// callers bring along and parseHost has not seen.
func canonical(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }
