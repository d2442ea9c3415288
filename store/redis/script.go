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
var scriptSHA = windowScript.sha

// script is one that decides calls.
type script struct {
	source string
	sha    string // the name that the server gives it
}

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source, hex.EncodeToString(sum[:])}
}

var windowScript = newScript(source)

// What the script returns for each request and each refund, in bytes, and besides for
// each request that reports something.
const (
	takeReply   = 41
	reportReply = 14
	refundReply = 6
)

// The kinds of calls, as the script reads them.
const (
	kindTake   = 0
	kindRefund = 1
	// Those of other scripts:
	kindClaim = 2 // see inflight.lua
	kindAmend = 3 // see amend.lua
	kindBoard = 4 // see board.lua
)

// item is a request or a refund of a call as the script reads it, but for the
// place of its key in KEYS, which depends on the run. One string costs the server,
// and this process, less than many numbers.
type item struct {
	key    string
	packed [itemSize]byte
	block  [blockSize]byte // of a request that bans
	bans   bool
	spent  []byte // the entries of a request that are unreported
}

// itemSize is the size of an item without the place of the key, a ban and what is
// unreported; blockSize that of a ban, spentSize that of an entry of the latter.
const (
	itemSize  = 34
	blockSize = 7
	spentSize = 13
)

func (it *item) packRequest(r *store.Request) {
	b := &it.packed
	put(b[0:7], r.Window.Microseconds())
	put(b[7:13], r.Limit)
	put(b[13:19], r.Units)
	put(b[19:25], r.Lease)
	put(b[25:32], r.LeaseSpan.Microseconds())
	if r.Shadow {
		b[32] = 1
	}
	if r.Block > 0 {
		it.bans = true
		b[32] += 2
		put(it.block[:], r.Block.Microseconds())
	}
	b[33] = byte(len(r.Unreported))
	for _, spent := range r.Unreported {
		var entry [spentSize]byte
		put(entry[0:7], spent.Age.Microseconds())
		put(entry[7:13], spent.Units)
		it.spent = append(it.spent, entry[:]...)
	}
}

func (it *item) packRefund(r *store.Refund) {
	b := &it.packed
	put(b[0:7], r.Window.Microseconds())
	put(b[7:14], r.Stamp)
	put(b[14:21], r.Mark)
	put(b[21:27], r.Units)
	put(b[27:34], r.Origin)
}

// put writes n into all of b.
func put(b []byte, n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte(n)
		n >>= 8
	}
}

// readDecisions reads what the script returns for the requests of a call, which are
// the items; nil if none of them reports anything. It does not tell the charges'
// Origin, see [call.read].
func readDecisions(reply string, items []item, decisions []store.Decision) error {
	if size := takeSize(items, len(decisions)); len(reply) != size {
		return fmt.Errorf("%w: %d bytes for %d requests, want %d", errReply, len(reply), len(decisions), size)
	}
	number := func(size int) (n int64) {
		for i := range size {
			n = n<<8 | int64(reply[i])
		}
		reply = reply[size:]
		return n
	}
	for i := range decisions {
		outcome := number(1)
		decisions[i] = store.Decision{
			Granted:    outcome == 1,
			Blocked:    outcome == 2,
			Lease:      number(6),
			Remaining:  number(6),
			Reset:      time.Duration(number(7)) * time.Microsecond,
			RetryAfter: time.Duration(number(7)) * time.Microsecond,
			Charge:     store.Charge{Stamp: number(7), Mark: number(7)},
		}
		if i < len(items) && len(items[i].spent) > 0 {
			decisions[i].Reported = store.Charge{Stamp: number(7), Mark: number(7)}
		}
	}
	return nil
}

// takeSize is how many bytes the script returns for so many requests, which are the
// items if that is not nil.
func takeSize(items []item, requests int) int {
	size := takeReply * requests
	for i := range items {
		if len(items[i].spent) > 0 {
			size += reportReply
		}
	}
	return size
}
