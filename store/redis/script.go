package redis

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

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
	takeArgs    = 1 // see packAsk
	takeReply   = 41
	refundArgs  = 5
	refundReply = 6 // bytes
)

// takeCommand is the command that decides asks.
func (k *keys) takeCommand(requests []store.Request) []any {
	args := make([]any, 0, 4+len(requests)*(1+takeArgs))
	args = append(args, "evalsha", scriptSHA, len(requests))
	var h clientHash
	for i := range requests {
		a := &requests[i]
		if i == 0 || a.Key.Client != requests[i-1].Key.Client {
			h = k.hash(a.Key.Client)
		}
		args = append(args, k.key(&a.Key, &h))
	}
	args = append(args, "take")
	for i := range requests {
		args = append(args, packRequest(&requests[i]))
	}
	return args
}

// packAsk is an ask as the script reads it. One string costs the server, and
// this process, less than six numbers.
func packRequest(a *store.Request) string {
	const size, owedSize = 33, 13
	var packed [size]byte
	put(packed[0:7], a.Window.Microseconds())
	put(packed[7:13], a.Limit)
	put(packed[13:19], a.Units)
	put(packed[19:25], a.Lease)
	put(packed[25:32], a.LeaseSpan.Microseconds())
	if a.Shadow {
		packed[32] = 1
	}
	if len(a.Unreported) == 0 {
		return string(packed[:])
	}
	var owed [owedSize]byte
	b := append(make([]byte, 0, size+owedSize*len(a.Unreported)), packed[:]...)
	for _, spent := range a.Unreported {
		put(owed[0:7], spent.Age.Microseconds())
		put(owed[7:13], spent.Units)
		b = append(b, owed[:]...)
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

// giveCommand is the command that gives grants back.
func (k *keys) refundCommand(refunds []store.Refund) []any {
	args := make([]any, 0, 4+len(refunds)*(1+refundArgs))
	args = append(args, "evalsha", scriptSHA, len(refunds))
	var h clientHash
	for i := range refunds {
		g := &refunds[i]
		if i == 0 || g.Key.Client != refunds[i-1].Key.Client {
			h = k.hash(g.Key.Client)
		}
		args = append(args, k.key(&g.Key, &h))
	}
	args = append(args, "give")
	for i := range refunds {
		g := &refunds[i]
		args = append(args, g.Window.Microseconds(), g.Stamp, g.Mark, g.Units, g.Origin)
	}
	return args
}

// emptyCommand runs the script for no key at all: it loads it where it is not
// loaded, and stands in for a call that nobody waits for any more.
func emptyCommand() []any {
	return []any{"evalsha", scriptSHA, 0, "take"}
}

var errReply = errors.New("the server's reply is not the script's")

// readAnswers reads the reply to takeCommand. It does not tell the charges'
// Origin, see [call.read].
func readDecisions(reply string, decisions []store.Decision) error {
	if len(reply) != takeReply*len(decisions) {
		return fmt.Errorf("%w: %d bytes for %d asks", errReply, len(reply), len(decisions))
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

// command is one call of the script in a pipeline. The library asks for its
// arguments once, at the moment it writes them, and not before there is a
// connection: this is when the call is either sent or, if nobody waits for it
// any more, replaced by one that does nothing.
type command struct {
	*redis.StringCmd
	call    *call
	client  *client          // the connections over which it is sent
	written bool             // what has not been written has not been executed
	asking  *redis.StatusCmd // what is sent right before it, nil for nothing
}

func newCommand(c *call, over *client) *command {
	return &command{StringCmd: redis.NewStringCmd(context.Background(), c.args...), call: c, client: over}
}

// Args overrides the library's.
func (c *command) Args() []any {
	c.written = true
	if !c.call.send() {
		return emptyCommand()
	}
	// Not what is known when the reply is here: the server that executes it may
	// be another one by then.
	c.call.origin = c.client.origin.Load()
	return c.call.args
}

// NoRetry overrides the library's: it keeps every kind of its clients from
// sending the command again after a timeout, when it may have been executed.
func (*command) NoRetry() bool { return true }
