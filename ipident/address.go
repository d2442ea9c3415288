package ipident

import (
	"net/netip"
	"strings"
)

// parseAddress is the only place where text becomes an address: peers and
// elements of every header go through it, so that no header has a laxer reader
// than another. It accepts
//
//	192.0.2.1   192.0.2.1:80   2001:db8::1   [2001:db8::1]   [2001:db8::1]:80
//
// and nothing around them. What it returns is never IPv4-mapped, zoned,
// unspecified or multicast.
func parseAddress(s string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok := strings.Cut(inner, "]")
		if !ok || port != "" && (port[0] != ':' || !isPort(port[1:])) {
			return netip.Addr{}, false
		}
		// Brackets are for IPv6. "[192.0.2.1]" is something a client
		// invented, not something a proxy wrote.
		if strings.IndexByte(host, ':') < 0 {
			return netip.Addr{}, false
		}
		return parseHost(host)
	}
	// A single colon cannot be part of an IPv6 address, so it separates a port.
	// With more than one the text is an address without a port: there is no
	// telling where a port would begin.
	if i := strings.IndexByte(s, ':'); i >= 0 && i == strings.LastIndexByte(s, ':') {
		if !isPort(s[i+1:]) {
			return netip.Addr{}, false
		}
		s = s[:i]
	}
	return parseHost(s)
}

// parseHostPort reads the form of CloudFront-Viewer-Address: always a port,
// after the last colon, and an IPv6 address before it without brackets.
func parseHostPort(s string) (netip.Addr, bool) {
	if strings.HasPrefix(s, "[") {
		return parseAddress(s)
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || !isPort(s[i+1:]) {
		return netip.Addr{}, false
	}
	return parseHost(s[:i])
}

// parseHost reads an address without brackets or port.
//
// netip.ParseAddr refuses what inet_aton reads in ways of its own (0177.0.0.1,
// 0x7f.1, 127.1, 2130706433): two readers that disagree on those are how one
// client gets two keys.
func parseHost(s string) (netip.Addr, bool) {
	// The zone is cut off before parsing. It means something only to the host
	// that wrote it, it is text of a stranger's choice (each zone would be a
	// fresh key), and netip keeps every zone it parses in a global table.
	host, zone, zoned := strings.Cut(s, "%")
	if zoned && !isZone(zone) {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || zoned && addr.Is4() {
		return netip.Addr{}, false
	}
	// A dual-stack listener or proxy writes an IPv4 client as ::ffff:a.b.c.d.
	// Left mapped it would miss every IPv4 range that is trusted, and an IPv6
	// prefix applied to it would put all of IPv4 in one bucket.
	addr = addr.Unmap()
	// Nobody connects from these. They are what broken proxies and forgers
	// write, and as a key they would be a bucket shared by all of them. This
	// stands after Unmap because ::ffff:0.0.0.0 is not "unspecified" before it.
	if addr.IsUnspecified() || addr.IsMulticast() {
		return netip.Addr{}, false
	}
	return addr, true
}

// isPort reports whether s is a decimal number from 0 to 65535 of at most five
// digits.
func isPort(s string) bool {
	if s == "" || len(s) > 5 {
		return false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

// isZone reports whether s could be the name of a network interface: visible
// ASCII without the delimiters of the syntaxes an address is embedded in.
func isZone(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || strings.IndexByte(`",;[]%\`, s[i]) >= 0 {
			return false
		}
	}
	return s != ""
}
