package ipident

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Rules say which one header names the client, if any, and how it is read. The
// zero Rules read no header. Rules are immutable: any number of goroutines may
// use them.
type Rules struct {
	header string // canonical name, "" for none
	form   form
	hops   int // 0: trust is asked about
}

// form is the syntax of a header.
type form uint8

const (
	formNone      form = iota
	formList           // addresses separated by commas
	formForwarded      // RFC 7239
	formSingle         // one address
	formHostPort       // one address, always with a port, IPv6 without brackets
)

// NewRules returns rules that read the header of that name, or none at all if
// it is "".
//
// X-Forwarded-For is a list of addresses, Forwarded is that of RFC 7239,
// CloudFront-Viewer-Address is one address with a port, and every other header
// is one address. There is one header and no more: a list of headers to try is
// an invitation to send the one that the proxy does not overwrite.
//
// It fails if header is not a valid field name.
func NewRules(header string) (Rules, error) {
	if header == "" {
		return Rules{}, nil
	}
	for i := range len(header) {
		if !isTokenByte(header[i]) {
			return Rules{}, fmt.Errorf("client address header %q: character %q cannot be in the name of a header; write one name, for example X-Forwarded-For", header, header[i])
		}
	}
	r := Rules{header: http.CanonicalHeaderKey(header), form: formSingle}
	switch r.header {
	case "X-Forwarded-For":
		r.form = formList
	case "Forwarded":
		r.form = formForwarded
	case "Cloudfront-Viewer-Address":
		r.form = formHostPort
	}
	return r, nil
}

// WithHops returns rules that take exactly the nth element from the right of a
// list for the client, for n proxies whose addresses are not known. It asks
// nobody about trust: whoever reaches this server without passing through all n
// proxies chooses its address, and each of them must append to the header.
//
// It fails if n is not 1 to 32, or the header is not a list.
func (r Rules) WithHops(n int) (Rules, error) {
	if n < 1 || n > maxHops {
		return Rules{}, fmt.Errorf("%d hops are not between 1 and %d; write how many proxies a request passes", n, maxHops)
	}
	if r.form != formList && r.form != formForwarded {
		return Rules{}, fmt.Errorf("hops cannot be counted in header %q, which is not a list; name X-Forwarded-For or Forwarded", r.header)
	}
	r.hops = n
	return r, nil
}

// Header returns the canonical name of the header that is read, or "".
func (r Rules) Header() string { return r.header }

// Trust answers whether a hop is a trusted proxy: one that, as far as the
// operator knows, writes down the address of its own peer. It is declared here
// and implemented by whoever knows the configuration, for example with
// [Ranges.Contains].
//
// It is called with canonical addresses (not IPv4-mapped, without zone), and
// with the zero Addr for a Unix-socket peer.
type Trust func(hop netip.Addr) bool

// Client decides who the client is. remoteAddr is that of the request
// (http.Request.RemoteAddr), header is the request's, which must have canonical
// names as net/http makes them. A nil trusted trusts nobody.
//
// Client calls trusted once for the peer and at most 32 times for hops, does
// not keep it, and allocates nothing unless an element or the peer does not
// parse.
func (r Rules) Client(remoteAddr string, header http.Header, trusted Trust) Result {
	client := Peer(remoteAddr)
	if r.form == formNone || client.Reason == ReasonBadPeer {
		return client
	}
	if r.hops > 0 {
		return r.nth(client, header[r.header])
	}
	// The threat: anyone can send any header. Only a trusted peer's is worth
	// reading, and it is not even looked at before that is known.
	if trusted == nil || !trusted(client.Addr) {
		if client.HasAddr() {
			client.Reason = ReasonUntrustedPeer
		}
		return client
	}
	lines := header[r.header]
	switch r.form {
	case formList, formForwarded:
		return r.walk(client, lines, trusted)
	default:
		return r.single(client, lines)
	}
}

// Peer returns the peer by itself, for remoteAddr as in http.Request.RemoteAddr.
// The Reason is ReasonPeer, ReasonUnix or ReasonBadPeer.
//
// Unix-socket peers are "" and "@" (most clients do not bind their end), "@"
// and a name, or an absolute path. They have no address however they are
// called: a name that the client gave its own socket would be a key of its
// choice.
func Peer(remoteAddr string) Result {
	if remoteAddr == "" || remoteAddr[0] == '@' || remoteAddr[0] == '/' {
		return Result{Source: SourcePeer, Reason: ReasonUnix}
	}
	addr, ok := parseAddress(remoteAddr)
	if !ok {
		return Result{Source: SourcePeer, Reason: ReasonBadPeer}
	}
	return Result{Addr: addr, Source: SourcePeer, Reason: ReasonPeer}
}

// single reads a header that holds one address. It is the trusted peer that
// speaks for it, so the address is taken without asking whether it is trusted.
func (r Rules) single(peer Result, lines []string) Result {
	client := peer
	// The threat: a proxy that adds the header instead of replacing it leaves
	// the client's own next to its own. Which of them is true cannot be known,
	// so neither is used, whichever parses.
	if len(lines) > 1 {
		client.Reason = ReasonDuplicate
		return client
	}
	value := ""
	if len(lines) == 1 {
		value = lines[0]
	}
	if len(value) > maxBytes {
		client.Reason = ReasonTooLong
		return client
	}
	if strings.IndexByte(value, ',') >= 0 {
		client.Reason = ReasonDuplicate
		return client
	}
	value = trim(value)
	if value == "" {
		client.Reason = ReasonNoHeader
		return client
	}
	return r.named(client, value)
}

// named is the client that an element names; if it does not parse, the one that
// is nearest.
func (r Rules) named(nearest Result, element string) Result {
	addr, ok := r.parse(element)
	if !ok {
		nearest.Reason = ReasonMalformed
		return nearest
	}
	return Result{Addr: addr, Source: SourceHeader, Reason: ReasonHeader}
}

// parse reads an element of the header.
func (r Rules) parse(element string) (netip.Addr, bool) {
	switch r.form {
	case formForwarded:
		return parseForwarded(element)
	case formHostPort:
		return parseHostPort(element)
	}
	return parseAddress(element)
}
