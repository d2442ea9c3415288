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
	takeArgs  = 1 // see packAsk
	takeReply = 41
	giveArgs  = 5
	giveReply = 6 // bytes
)

// takeCommand is the command that decides asks.
func (k *keys) takeCommand(asks []store.Ask) []any {
	args := make([]any, 0, 4+len(asks)*(1+takeArgs))
	args = append(args, "evalsha", scriptSHA, len(asks))
	var h clientHash
	for i := range asks {
		a := &asks[i]
		if i == 0 || a.Key.Client != asks[i-1].Key.Client {
			h = k.hash(a.Key.Client)
		}
		args = append(args, k.key(a.Key.Zone, a.Window, &h))
	}
	args = append(args, "take")
	for i := range asks {
		args = append(args, packAsk(&asks[i]))
	}
	return args
}

// packAsk is an ask as the script reads it. One string costs the server, and
// this process, less than six numbers.
func packAsk(a *store.Ask) string {
	const size, owedSize = 33, 13
	var packed [size]byte
	put(packed[0:7], a.Window.Microseconds())
	put(packed[7:13], a.Limit)
	put(packed[13:19], a.Need)
	put(packed[19:25], a.Extra)
	put(packed[25:32], a.Ahead.Microseconds())
	if a.Advisory {
		packed[32] = 1
	}
	if len(a.Owed) == 0 {
		return string(packed[:])
	}
	var owed [owedSize]byte
	b := append(make([]byte, 0, size+owedSize*len(a.Owed)), packed[:]...)
	for _, spent := range a.Owed {
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
func (k *keys) giveCommand(grants []store.Grant) []any {
	args := make([]any, 0, 4+len(grants)*(1+giveArgs))
	args = append(args, "evalsha", scriptSHA, len(grants))
	var h clientHash
	for i := range grants {
		g := &grants[i]
		if i == 0 || g.Key.Client != grants[i-1].Key.Client {
			h = k.hash(g.Key.Client)
		}
		args = append(args, k.key(g.Key.Zone, g.Window, &h))
	}
	args = append(args, "give")
	for i := range grants {
		g := &grants[i]
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
func readAnswers(reply string, answers []store.Answer) error {
	if len(reply) != takeReply*len(answers) {
		return fmt.Errorf("%w: %d bytes for %d asks", errReply, len(reply), len(answers))
	}
	number := func(size int) (n int64) {
		for i := range size {
			n = n<<8 | int64(reply[i])
		}
		reply = reply[size:]
		return n
	}
	for i := range answers {
		answers[i] = store.Answer{
			Granted:    number(1) == 1,
			Extra:      number(6),
			Remaining:  number(6),
			Reset:      time.Duration(number(7)) * time.Microsecond,
			RetryAfter: time.Duration(number(7)) * time.Microsecond,
			Stamp:      number(7),
			Mark:       number(7),
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
