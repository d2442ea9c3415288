package redis

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"strconv"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// keys turns the keys of a store into those of the server:
//
//	prefix:version:zone:window:{hash of the client}
//
// The version is the log format's: while instances are replaced by another
// version, neither reads the other's logs, which it would take for garbage and
// begin anew.
//
// The hash keeps what a stranger sent out of the keys, whatever its bytes and
// its length. With a secret it also keeps a reader of the keys from finding the
// client by trying. It alone decides the Cluster slot, so that zones that count
// the same client can be decided in one call.
type keys struct {
	prefix string
	macs   sync.Pool // of hash.Hash, if there is a secret
	secret bool
}

// version is the version of the log format, see window.lua.
const version = '2'

// hashSize is how many bytes of the hash are in the key. Nobody can make two
// clients collide in 128 bits and so share a log.
const hashSize = 16

func newKeys(prefix string, secret []byte) *keys {
	k := &keys{prefix: prefix, secret: len(secret) > 0}
	k.macs.New = func() any { return hmac.New(sha256.New, secret) }
	return k
}

// clientHash is the hash of a client as it stands in its keys.
type clientHash [22]byte

func (k *keys) hash(client string) (h clientHash) {
	sum := k.digest(client)
	base64.RawURLEncoding.Encode(h[:], sum[:])
	return h
}

// digest is the hash itself.
func (k *keys) digest(client string) [hashSize]byte {
	var buf [store.MaxClientBytes]byte
	var sum [sha256.Size]byte
	if k.secret {
		mac := k.macs.Get().(hash.Hash)
		mac.Reset()
		mac.Write(append(buf[:0], client...))
		mac.Sum(sum[:0])
		k.macs.Put(mac)
	} else {
		sum = sha256.Sum256(append(buf[:0], client...))
	}
	return [hashSize]byte(sum[:hashSize])
}

// of is the key of a log.
func (k *keys) of(key *store.Key) string {
	h := k.hash(key.Client)
	return k.key(key, &h)
}

// slot is the slot of a client's keys.
func (k *keys) slot(client string) uint16 {
	h := k.hash(client)
	return slotOf(string(h[:]))
}

func (k *keys) key(key *store.Key, h *clientHash) string {
	var buf [128]byte
	b := append(buf[:0], k.prefix...)
	b = append(b, ':', version, ':')
	b = appendZone(b, key.Zone)
	b = append(b, ':')
	b = appendWindow(b, key.Window)
	b = append(b, ":{"...)
	b = append(b, h[:]...)
	b = append(b, '}')
	return string(b)
}

// appendZone writes a zone. Characters that could be taken for another piece of
// the key, a brace above all, are written in percent encoding.
func appendZone(b []byte, zone string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(zone) {
		c := zone[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}

// appendWindow writes a window in the largest unit that needs no fraction, so
// that there is one way to write each.
func appendWindow(b []byte, window time.Duration) []byte {
	switch {
	case window%time.Second == 0:
		return append(strconv.AppendInt(b, int64(window/time.Second), 10), 's')
	case window%time.Millisecond == 0:
		return append(strconv.AppendInt(b, window.Milliseconds(), 10), "ms"...)
	default:
		return append(strconv.AppendInt(b, window.Microseconds(), 10), "us"...)
	}
}
