package ipident

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// Ranges are address ranges of trusted proxies. The zero Ranges contain
// nothing. Ranges are immutable: any number of goroutines may use them.
type Ranges struct {
	// sorted by address, none overlapping: two prefixes either are disjoint or
	// one contains the other, and contained ones are left out.
	v4, v6 []netip.Prefix
}

// mapped is where the IPv4-mapped addresses are.
var mapped = netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), 96)

// NewRanges returns the union of prefixes. Bits beyond a prefix's length are
// ignored, and IPv4-mapped prefixes (::ffff:10.0.0.0/104) are taken for the
// IPv4 prefixes they mean (10.0.0.0/8).
//
// It fails, naming the prefix and its index, for an invalid prefix and for one
// that covers all of IPv4 or all of IPv6; and if the union covers more than a
// quarter of IPv4, or of 2000::/3, which is all of IPv6 that is in use on the
// internet: 0.0.0.0/1 with 128.0.0.0/1, and 2000::/3, are everybody in pieces.
// Whoever trusts every address as a proxy takes the left end of the list, which
// the client writes, for the client: then there is no limit at all.
func NewRanges(prefixes []netip.Prefix) (Ranges, error) {
	var r Ranges
	for i, given := range prefixes {
		if !given.IsValid() {
			return Ranges{}, fmt.Errorf("trusted range %d: not a valid prefix; write one like 10.0.0.0/8", i)
		}
		p := given.Masked()
		switch {
		case p.Bits() == 0:
			return Ranges{}, allTrusted(i, given)
		case p.Addr().Is4():
			r.v4 = append(r.v4, p)
		case p.Overlaps(mapped) && p.Bits() <= mapped.Bits():
			return Ranges{}, allTrusted(i, given)
		case p.Overlaps(mapped):
			r.v4 = append(r.v4, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped.Bits()))
		default:
			r.v6 = append(r.v6, p)
		}
	}
	r.v4, r.v6 = disjoint(r.v4), disjoint(r.v6)
	if problem := cmp.Or(tooMuch(r.v4, allIPv4), tooMuch(r.v6, globalIPv6)); problem != "" {
		return Ranges{}, errors.New(problem)
	}
	return r, nil
}

var (
	allIPv4    = netip.MustParsePrefix("0.0.0.0/0")
	globalIPv6 = netip.MustParsePrefix("2000::/3")
)

// mostTrusted is the share of a family's addresses that proxies may have. The
// largest known providers have a few hundredths.
const mostTrusted = 0.25

// tooMuch tells what is wrong if disjoint ranges cover too much of a space; ""
// if they do not.
func tooMuch(ranges []netip.Prefix, space netip.Prefix) string {
	share, largest := 0.0, netip.Prefix{}
	for _, p := range ranges {
		if !p.Overlaps(space) {
			continue
		}
		share += math.Ldexp(1, space.Bits()-max(p.Bits(), space.Bits()))
		if !largest.IsValid() || p.Bits() < largest.Bits() {
			largest = p
		}
	}
	if share <= mostTrusted {
		return ""
	}
	return fmt.Sprintf("trusted ranges: together they cover %.3g %% of %v, the largest is %v, which means to trust whatever anyone writes; "+
		"list the networks of the proxies instead", share*100, space, largest)
}

func allTrusted(i int, p netip.Prefix) error {
	return fmt.Errorf("trusted range %d: %v covers every address, which means to trust whatever anyone writes; list the networks of the proxies instead", i, p)
}

// disjoint sorts prefixes and leaves out those within others.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits())
	})
	// After sorting, a prefix stands behind those that contain it, with nothing
	// but their other parts in between.
	kept := prefixes[:0]
	for _, p := range prefixes {
		if len(kept) == 0 || !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// Contains reports whether addr is in any of the ranges, whatever its zone and
// whether or not it is IPv4-mapped. The zero Addr, which stands for a
// Unix-socket peer, is in none. It does not allocate.
func (r Ranges) Contains(addr netip.Addr) bool {
	if !addr.IsValid() {
		return false
	}
	addr = canonical(addr)
	ranges := r.v6
	if addr.Is4() {
		ranges = r.v4
	}
	// The only candidate is the last range that begins at addr or before it.
	after, exact := slices.BinarySearchFunc(ranges, addr, func(p netip.Prefix, a netip.Addr) int {
		return p.Addr().Compare(a)
	})
	return exact || after > 0 && ranges[after-1].Contains(addr)
}
