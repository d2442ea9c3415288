// Package ipident decides which address a request comes from, for a limiter
// that gives each client a bucket of its own.
//
// It is a pure function of three things: the address of the connection's peer,
// the request's header, and a caller's answer to "is this hop a trusted
// proxy?". It reads at most one header, and that header only when the peer is
// trusted. List headers are read from the right end, where trusted proxies
// write, towards the left end, where strangers write.
//
// What it promises:
//
//   - A client behind trusted proxies cannot choose its own address. Whatever
//     stands in the header before the first trusted proxy appended to it does
//     not change the answer.
//   - One client has one key, however its address is spelled: IPv4-mapped,
//     with a port, with a zone, in upper case, through NAT64, 6to4 or Teredo.
//   - Every request has a key that is not empty, and the buckets of peers
//     without an address have names that no header can produce.
//   - The work for one request is bounded: 32 hops and 4 KiB of the header,
//     counted from the right.
//
// What it does not promise:
//
//   - It does not tell good proxies from bad ones. A trusted proxy that passes
//     on a single-value header instead of overwriting it, or that appends to a
//     list without having seen the peer it names, hands the choice of address
//     to the client, and nothing here can notice.
//   - An address is not a person. Clients behind one NAT share a bucket; one
//     client with a whole IPv6 /48 has many, unless the prefix says otherwise.
//   - It never falls back to a second header. A header that is absent or does
//     not parse leaves the nearest address that is certain, often the proxy's,
//     so that clients share a bucket rather than choose one. [Result.Reason]
//     tells when that happens.
package ipident
