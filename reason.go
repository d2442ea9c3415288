package distributedratelimit

import (
	"math"
	"net/http"
	"time"
)

// reason is why a zone refuses a request. If zones refuse one for different
// reasons, the response is about the last of them in this order: first come those
// for which waiting helps.
type reason uint8

const (
	reasonNone       reason = iota // the zone does not refuse
	reasonLimit                    // the limit is reached
	reasonBlocked                  // the key is banned
	reasonBusy                     // as many requests as may be are in flight
	reasonStoreAway                // the store is away, and the zone denies then
	reasonZero                     // the limit is 0
	reasonTooCostly                // the request takes more than the limit
	reasonEmptyKey                 // the request has nothing of the zone's key
	reasonUnbounded                // nothing bounds what the request to an LLM API may cost
	reasonUnmetered                // nobody knows what it may cost
	reasonMalformed                // its body cannot be read, or in several ways
	reasonEncoded                  // its body is encoded, or no JSON
	reasonTooLong                  // its body is longer than is read
	reasonBodyMemory               // other bodies hold all the memory that there is
	reasonSlowBody                 // the body that the zone reads has not come in time
	reasons                        // how many there are
)

// refusals tell what a refused client is told for each reason. A new reason is a
// row here, and all of the response, the log line, the placeholders and the
// metrics know it.
var refusals = [reasons]refusal{
	reasonLimit: {
		name: "limit", problem: problemQuotaExceeded, title: "Too many requests",
		detail: "The limit on requests is reached", limit: true,
	},
	reasonBlocked: {
		name: "blocked", problem: problemQuotaExceeded, title: "Too many requests",
		detail: "The limit on requests was reached, and more are not granted for a while", limit: true,
	},
	reasonBusy: {
		name: "busy", problem: problemQuotaExceeded, title: "Too many requests at once",
		detail: "Too many requests are in flight; try again when one of them is over.", wait: unknownWait, limit: true,
	},
	reasonStoreAway: {
		name: "store_away", status: http.StatusServiceUnavailable, problem: problemReducedCapacity,
		title:  "Limits cannot be checked at the moment",
		detail: "The limit on requests cannot be checked at the moment; try again shortly.", wait: unknownWait,
	},
	reasonZero: {
		name: "zero", problem: problemQuotaExceeded, title: "Too many requests",
		detail: "The limit allows no requests.", wait: useless, limit: true,
	},
	reasonTooCostly: {
		name: "too_costly", problem: problemQuotaExceeded, title: "Too costly a request",
		detail: "The request takes more than the whole limit.", wait: useless, limit: true,
	},
	reasonEmptyKey: {
		name: "empty_key", status: http.StatusForbidden, problem: "about:blank", title: http.StatusText(http.StatusForbidden),
		detail: "The request lacks what tells this client from others.", wait: useless,
	},
	reasonUnbounded: {
		name: "unbounded", status: http.StatusBadRequest, problem: "about:blank", title: http.StatusText(http.StatusBadRequest),
		detail: "Nothing bounds what the request may cost.", wait: useless,
	},
	reasonUnmetered: {
		name: "unmetered", status: http.StatusForbidden, problem: "about:blank", title: http.StatusText(http.StatusForbidden),
		detail: "What requests with this method to this path cost is not known here, so that they are not accepted.", wait: useless,
	},
	reasonMalformed: {
		name: "malformed", status: http.StatusBadRequest, problem: "about:blank", title: http.StatusText(http.StatusBadRequest),
		detail: "The request's body could not be read.", wait: useless,
	},
	reasonEncoded: {
		name: "encoded", status: http.StatusUnsupportedMediaType, problem: "about:blank", title: http.StatusText(http.StatusUnsupportedMediaType),
		detail: "The request's body is encoded, or not JSON by its Content-Type; send it as it is, as application/json.", wait: useless,
	},
	reasonTooLong: {
		name: "too_long", status: http.StatusRequestEntityTooLarge, problem: "about:blank", title: http.StatusText(http.StatusRequestEntityTooLarge),
		detail: "The request's body is longer than is read here; send less.", wait: useless,
	},
	reasonBodyMemory: {
		name: "body_memory", status: http.StatusServiceUnavailable, problem: problemReducedCapacity,
		title:  "Too many requests are being read at the moment",
		detail: "There is no memory left to read the request; try again shortly.", wait: unknownWait,
	},
	reasonSlowBody: {
		name: "slow_body", status: http.StatusRequestTimeout, problem: "about:blank", title: http.StatusText(http.StatusRequestTimeout),
		detail: "The request has not arrived in time.", wait: useless,
	},
}

// refusal is what all refusals for one reason have in common.
type refusal struct {
	name                   string
	status                 int // 0 for the handler's
	problem, title, detail string
	// wait is how long the client has to wait. 0 is for what the zone has
	// decided, which the detail then tells; useless is no time at all.
	wait time.Duration
	// limit: what limits say is the reason. The response names them and what is
	// left of them, and the request is charged nowhere else. Other refusals are
	// ordinary errors: a client may cause them at will, and the routes that render
	// them may have limits.
	limit bool
}

const (
	useless time.Duration = math.MaxInt64
	// unknownWait is for what passes, nobody knows when.
	unknownWait = time.Second
)

func (r reason) String() string { return refusals[r].name }
