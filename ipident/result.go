package ipident

import "net/netip"

// Result is the client of one request, and why it is that.
//
// The zero Result is that of a peer that does not parse.
type Result struct {
	// Addr is the client's address: never IPv4-mapped, zoned, unspecified or
	// multicast. It is the zero Addr where the client is a Unix-socket peer or
	// a peer that does not parse; then Source is SourcePeer.
	Addr netip.Addr

	// Source is the place Addr was read from.
	Source Source

	// Reason says why this is the client.
	Reason Reason
}

// Names of the clients without an address. Elements of headers only ever yield
// addresses, and no address reads like these, so nobody can get into or out of
// these buckets by writing a header.
const (
	nameUnix    = "unix"
	nameUnknown = "unknown"
)

// HasAddr reports whether the client has an address. If not, its name is
// "unix" or "unknown", and all clients of that name share a bucket.
func (r Result) HasAddr() bool { return r.Addr.IsValid() }

// String returns the client's address in canonical form, unmasked, or "unix"
// or "unknown". It is never empty.
func (r Result) String() string {
	if !r.Addr.IsValid() {
		return r.name()
	}
	return r.Addr.String()
}

// name is what a client without an address is called. A peer that does not
// parse is never trusted, so no other reason can hide it.
func (r Result) name() string {
	if r.Reason == ReasonBadPeer {
		return nameUnknown
	}
	return nameUnix
}

// Source is where an address was read from.
type Source uint8

const (
	SourcePeer   Source = iota // the connection's peer
	SourceHeader               // the header that the rules name
)

// String returns "peer" or "header".
func (s Source) String() string {
	if s == SourceHeader {
		return "header"
	}
	return "peer"
}

// Reason is why a Result is what it is. The texts are a closed set, fit for a
// metric label.
//
// For a trusted Unix-socket peer the reason says what was wrong with its header
// (no_header, malformed, duplicate, too_long), since that is what its operator
// has to mend; that the peer is a Unix socket can be seen from [Result.String].
type Reason uint8

const (
	// ReasonBadPeer: the remote address is neither an IP address nor a Unix
	// socket. Such a peer is never trusted.
	ReasonBadPeer Reason = iota

	// ReasonPeer: the rules read no header, the client is the peer.
	ReasonPeer

	// ReasonUnix: the client is a Unix-socket peer, because it is not trusted
	// or because the rules read no header.
	ReasonUnix

	// ReasonUntrustedPeer: the rules name a header, but the peer is not
	// trusted, so that the header is whatever the peer likes. The client is
	// the peer.
	ReasonUntrustedPeer

	// ReasonNoHeader: the peer is trusted but sent no such header, or one
	// without any element. The client is the peer.
	ReasonNoHeader

	// ReasonHeader: the address in the header; of a list, the first from the
	// right that is not a trusted proxy.
	ReasonHeader

	// ReasonAllTrusted: every element of the list is a trusted proxy. The
	// client is the leftmost one.
	ReasonAllTrusted

	// ReasonMalformed: an element that does not parse ended the walk. The
	// client is the trusted hop to its right, or the peer if there is none.
	ReasonMalformed

	// ReasonDuplicate: a single-value header had more than one line or more
	// than one element. The client is the peer.
	ReasonDuplicate

	// ReasonTooLong: 32 hops or 4 KiB, counted from the right, held nothing but
	// trusted proxies (or one endless element). The client is the last trusted
	// hop within these bounds, or the peer if there is none.
	ReasonTooLong

	// ReasonTooFewHops: the list has fewer elements than there are proxies. The
	// client is the peer.
	ReasonTooFewHops

	numReasons = iota
)

var reasonTexts = [numReasons]string{
	ReasonBadPeer:       "bad_peer",
	ReasonPeer:          "peer",
	ReasonUnix:          "unix",
	ReasonUntrustedPeer: "untrusted_peer",
	ReasonNoHeader:      "no_header",
	ReasonHeader:        "header",
	ReasonAllTrusted:    "all_trusted",
	ReasonMalformed:     "malformed",
	ReasonDuplicate:     "duplicate",
	ReasonTooLong:       "too_long",
	ReasonTooFewHops:    "too_few_hops",
}

// String returns peer, header, untrusted_peer, no_header, malformed, duplicate,
// all_trusted, too_long, too_few_hops, unix or bad_peer; "invalid" for any other value.
func (r Reason) String() string {
	if int(r) >= len(reasonTexts) {
		return "invalid"
	}
	return reasonTexts[r]
}
