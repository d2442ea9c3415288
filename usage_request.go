package distributedratelimit

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/llm"
)

// meets looks at a request before its body is read, for a zone with usage: it reports
// whether the body says what the request may cost.
func (e *evaluation) meets(zone *Zone) bool {
	if !zone.key.ReadsBody() && zone.whenEmpty(&zone.key.Template) != emptyKeyClient {
		// Whom the key refuses makes nobody read a long body, and reads nothing that is free.
		switch _, found := zone.client(&e.keys, e.charges); found {
		case keyDenied:
			e.refuse(zone, zone.limitShown(), reasonEmptyKey)
			return false
		case keySkipped:
			e.keys.probe.absent(zone, absentEmptyKey)
			return false
		}
	}
	switch zone.meter.Route(e.r.Method, e.r.URL.EscapedPath()) {
	case llm.Free:
		e.exempt = append(e.exempt, zone)
		e.keys.probe.absent(zone, absentFree)
		return false
	case llm.Unmetered:
		e.refuse(zone, zone.limitShown(), reasonUnmetered)
		return false
	}
	return true
}

// orderUsage puts the zone first that writes the smallest bound: the others read the
// request that was rewritten for it, and need write nothing any more.
func (e *evaluation) orderUsage() {
	slices.SortStableFunc(e.later, func(a, b *Zone) int { return cmp.Compare(a.writes(), b.writes()) })
}

// writes is the bound that a zone writes into requests.
func (z *Zone) writes() int64 {
	switch {
	case z.Usage == nil:
		return 0
	case z.Usage.EnforceOff || z.Usage.MaxOutput == 0:
		return math.MaxInt64
	}
	return z.Usage.MaxOutput
}

// price finds out what the request may cost by its body, and rewrites it. It returns
// nil if the zone refuses the request.
func (e *evaluation) price(zone *Zone, limit int64) *llm.Reservation {
	read := e.keys.Body
	if !e.priced {
		e.priced, e.text = true, read.Bytes()
	}
	switch {
	case read.TooLong():
		e.refuse(zone, limit, reasonTooLong)
		return nil
	case read.Failed():
		e.refuse(zone, limit, reasonMalformed)
		return nil
	case !read.Complete():
		e.refuse(zone, limit, reasonEncoded) // its type is another one, or it is encoded
		return nil
	}
	rsv, refusal := zone.meter.Reserve(e.r.Method, e.r.URL.EscapedPath(), e.r.Header, e.text)
	if refusal != nil {
		e.refuse(zone, limit, meterReasons[refusal.Reason])
		e.verdicts[len(e.verdicts)-1].refusal = refusal
		return nil
	}
	e.text, e.written = rsv.Body, e.written || rsv.Written
	rsv.Body = nil // a stream may last, and the body need not
	return rsv
}

// meterReasons are the reasons for which a request has no price here.
var meterReasons = map[llm.Reason]reason{
	llm.ReasonUnmetered: reasonUnmetered,
	llm.ReasonUnbounded: reasonUnbounded,
	llm.ReasonTooCostly: reasonTooCostly,
	llm.ReasonMalformed: reasonMalformed,
	llm.ReasonEncoded:   reasonEncoded,
}

// rewrite makes what the zones have written into the request's body the one that is
// handed on.
func (e *evaluation) rewrite() {
	text := e.text
	e.text = nil
	if !e.written {
		return
	}
	if err := e.keys.Body.Replace(text); err == body.ErrMemory {
		e.h.app.warnOfBodyMemory()
		for _, zone := range e.later {
			if zone.meter != nil {
				e.refuse(zone, zone.limitShown(), reasonBodyMemory)
			}
		}
		return
	}
	e.r.ContentLength, e.r.TransferEncoding = int64(len(text)), nil
	if _, ok := e.r.Header["Content-Length"]; ok {
		e.r.Header.Set("Content-Length", strconv.Itoa(len(text)))
	}
}

// explain makes a problem tell what a zone with usage has against the request.
func (v *verdict) explain(problem *problemDetails) {
	switch {
	case v.zone.Usage == nil:
	case v.refusal != nil:
		problem.Status, problem.Detail = v.refusal.Status, v.refusal.Message
	case v.reason == reasonLimit:
		problem.Detail = "The budget is used up"
	case v.reason == reasonTooCostly:
		problem.Detail = "The request may cost more than the whole budget; send less, or lower the bound of its output."
	}
}
