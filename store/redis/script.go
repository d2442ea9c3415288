package redis

import (
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

//go:embed window.lua
var source string

// scriptSHA is the name that the server gives the script.
var scriptSHA = func() string {
	sum := sha1.Sum([]byte(source))
	return hex.EncodeToString(sum[:])
}()

// What the script takes and returns for each key.
const (
	takeArgs    = 1 // see packRequest
	takeReply   = 41
	refundArgs  = 5
	refundReply = 6 // bytes
)

// takeCommand is the command that decides requests.
func (k *keys) takeCommand(requests []store.Request) []any {
	args := make([]any, 0, 4+len(requests)*(1+takeArgs))
	args = append(args, "evalsha", scriptSHA, len(requests))
	var h clientHash
	for i := range requests {
		r := &requests[i]
		if i == 0 || r.Key.Client != requests[i-1].Key.Client {
			h = k.hash(r.Key.Client)
		}
		args = append(args, k.key(&r.Key, &h))
	}
	args = append(args, "take")
	for i := range requests {
		args = append(args, packRequest(&requests[i]))
	}
	return args
}

// packRequest is a request as the script reads it. One string costs the server,
// and this process, less than six numbers.
func packRequest(r *store.Request) string {
	const size, spentSize = 33, 13
	var packed [size]byte
	put(packed[0:7], r.Window.Microseconds())
	put(packed[7:13], r.Limit)
	put(packed[13:19], r.Units)
	put(packed[19:25], r.Lease)
	put(packed[25:32], r.LeaseSpan.Microseconds())
	if r.Shadow {
		packed[32] = 1
	}
	if len(r.Unreported) == 0 {
		return string(packed[:])
	}
	var entry [spentSize]byte
	b := append(make([]byte, 0, size+spentSize*len(r.Unreported)), packed[:]...)
	for _, spent := range r.Unreported {
		put(entry[0:7], spent.Age.Microseconds())
		put(entry[7:13], spent.Units)
		b = append(b, entry[:]...)
	}
	return string(b)
}

// put writes n into all of b.
func put(b []byte, n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte(n)
		n >>= 8
	}
}

// refundCommand is the command that refunds units.
func (k *keys) refundCommand(refunds []store.Refund) []any {
	args := make([]any, 0, 4+len(refunds)*(1+refundArgs))
	args = append(args, "evalsha", scriptSHA, len(refunds))
	var h clientHash
	for i := range refunds {
		r := &refunds[i]
		if i == 0 || r.Key.Client != refunds[i-1].Key.Client {
			h = k.hash(r.Key.Client)
		}
		args = append(args, k.key(&r.Key, &h))
	}
	args = append(args, "refund")
	for i := range refunds {
		r := &refunds[i]
		args = append(args, r.Window.Microseconds(), r.Stamp, r.Mark, r.Units, r.Origin)
	}
	return args
}

// emptyCommand runs the script for no key at all: it stands in for a call that
// nobody waits for any more.
func emptyCommand() []any {
	return []any{"evalsha", scriptSHA, 0, "take"}
}

// readDecisions reads the reply to takeCommand. It does not tell the charges'
// Origin, see [call.read].
func readDecisions(reply string, decisions []store.Decision) error {
	if len(reply) != takeReply*len(decisions) {
		return fmt.Errorf("%w: %d bytes for %d requests", errReply, len(reply), len(decisions))
	}
	number := func(size int) (n int64) {
		for i := range size {
			n = n<<8 | int64(reply[i])
		}
		reply = reply[size:]
		return n
	}
	for i := range decisions {
		decisions[i] = store.Decision{
			Granted:    number(1) == 1,
			Lease:      number(6),
			Remaining:  number(6),
			Reset:      time.Duration(number(7)) * time.Microsecond,
			RetryAfter: time.Duration(number(7)) * time.Microsecond,
			Charge:     store.Charge{Stamp: number(7), Mark: number(7)},
		}
	}
	return nil
}
