package replay

import (
	"container/heap"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// decider decides requests in the order in which they came. The clock of its store is
// the time of the request. It is not safe for concurrent use.
type decider struct {
	zones  []Zone
	stats  []*zoneStats
	memory *store.Memory
	now    int64

	inFlight map[slot]int64
	ends     ends

	// Of the request being decided.
	charged   []slot
	requests  []store.Request
	decisions []store.Decision
	index     []int // the part of each request
	held      []slot
	verdicts  []verdict
}

type slot struct {
	zone   int32
	client string
}

// verdict is what becomes of a part.
type verdict uint8

const (
	silent  verdict = iota // nobody was asked: another zone refused
	granted                // it fits
	refused
)

// ending is what happens when a request is done.
type ending struct {
	at     int64
	refund store.Refund // of units that do not count after all; without units there is none
	slot   slot         // to be released; without a client there is none
	client *client      // of whom units of stamp do not count, or else who holds one slot less; or nil
	zone   *zoneStats
	stamp  int64
	units  int64
}

// ends is a heap: the next ending comes first.
type ends []ending

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].at < e[j].at }
func (e ends) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *ends) Push(x any)        { *e = append(*e, x.(ending)) }
func (e *ends) Pop() any {
	last := (*e)[len(*e)-1]
	(*e)[len(*e)-1] = ending{}
	*e = (*e)[:len(*e)-1]
	return last
}

func newDecider(zones []Zone, maxClients int, windows []time.Duration) *decider {
	d := &decider{zones: zones, inFlight: make(map[slot]int64)}
	d.memory = store.NewMemoryAt(maxClients, func() int64 { return d.now })
	left := &maxClients
	for i := range zones {
		d.stats = append(d.stats, newZoneStats(&zones[i], windows, left))
	}
	return d
}

// decide decides a request, and reports whether it is refused.
func (d *decider) decide(r *Record) (refuses bool) {
	d.now = max(d.now, r.Start)
	d.endUntil(d.now)
	d.charged = d.charged[:0]
	for begin := 0; begin < len(r.Parts) && !refuses; {
		end := begin + 1
		for end < len(r.Parts) && r.Parts[end].Handler == r.Parts[begin].Handler {
			end++
		}
		refuses = !d.handler(r, r.Parts[begin:end])
		begin = end
	}
	return refuses
}

// endUntil does what was to happen until now.
func (d *decider) endUntil(now int64) {
	for len(d.ends) > 0 && d.ends[0].at <= now {
		e := heap.Pop(&d.ends).(ending)
		if e.refund.Units > 0 {
			d.memory.Refund(0, []store.Refund{e.refund}) // it never fails
		}
		if e.slot.client != "" {
			d.release(e.slot)
		}
		switch {
		case e.client == nil:
		case e.units == 0:
			e.client.holding--
		case e.client.maxima != nil:
			e.client.maxima.giveBack(e.zone.windows, e.stamp, e.units)
		}
	}
}

func (d *decider) release(s slot) {
	if d.inFlight[s]--; d.inFlight[s] == 0 {
		delete(d.inFlight, s)
	}
}

// handler decides what one handler has to decide, as that does: slots come first, all
// zones in force grant or nothing is charged, and a limit that an earlier handler has
// charged is passed over.
func (d *decider) handler(r *Record, parts []Part) (passes bool) {
	d.verdicts = append(d.verdicts[:0], make([]verdict, len(parts))...)
	d.requests, d.index, d.held = d.requests[:0], d.index[:0], d.held[:0]
	passes = true
	for i := range parts {
		if p := &parts[i]; p.Kind == Refused {
			d.refuse(i, p, &passes)
		}
	}
	for i := range parts {
		if p := &parts[i]; p.Kind == Holds && passes && !d.has(p) {
			d.hold(i, p, &passes)
		}
	}
	for i := range parts {
		if p := &parts[i]; p.Kind == Counts && !d.has(p) {
			d.request(i, p)
		}
	}
	if passes && len(d.requests) > 0 {
		d.take(r, parts, &passes)
	}
	end := max(r.End, d.now)
	for _, s := range d.held {
		if !passes {
			d.release(s)
			continue
		}
		d.charged = append(d.charged, s)
		heap.Push(&d.ends, ending{at: end, slot: s})
	}
	for i := range parts {
		if p := &parts[i]; !d.passedOver(i, p) {
			d.count(end, p, d.verdicts[i])
		}
	}
	return passes
}

// count counts what became of a part, and what its client would have taken without limits.
func (d *decider) count(end int64, p *Part, v verdict) {
	z := d.stats[p.Zone]
	c := z.count(d.now, p, v)
	switch {
	case c == nil:
	case p.Kind == Holds:
		heap.Push(&d.ends, ending{at: end, client: c})
	case p.Kind == Counts && p.Back && c.maxima != nil:
		heap.Push(&d.ends, ending{at: end, client: c, zone: z, stamp: d.now, units: p.Units})
	}
}

func (d *decider) refuse(i int, p *Part, passes *bool) {
	d.verdicts[i] = refused
	if !d.zones[p.Zone].DryRun {
		*passes = false
	}
}

// hold takes a slot, if one is free.
func (d *decider) hold(i int, p *Part, passes *bool) {
	s := slot{p.Zone, p.Client}
	if d.inFlight[s] >= p.Limit {
		d.refuse(i, p, passes)
		return
	}
	d.inFlight[s]++
	d.held = append(d.held, s)
	d.verdicts[i] = granted
}

func (d *decider) request(i int, p *Part) {
	z := &d.zones[p.Zone]
	d.index = append(d.index, i)
	d.requests = append(d.requests, store.Request{
		Key:   store.Key{Zone: z.StoreName, Client: p.Client, Window: z.Window},
		Limit: p.Limit, Units: p.Units, Shadow: z.DryRun, Exact: true, Block: z.Block,
	})
}

// take has the store decide.
func (d *decider) take(r *Record, parts []Part, passes *bool) {
	d.decisions = append(d.decisions[:0], make([]store.Decision, len(d.requests))...)
	if err := d.memory.Take(time.Time{}, 0, d.requests, d.decisions); err != nil {
		panic(err) // no store would take such requests
	}
	for j := range d.requests {
		i := d.index[j]
		p, decision := &parts[i], &d.decisions[j]
		if !decision.Granted {
			d.refuse(i, p, passes)
			continue
		}
		d.verdicts[i] = granted
		if decision.Charged() {
			d.charged = append(d.charged, slot{p.Zone, p.Client})
		}
		if decision.Charged() && p.Back {
			heap.Push(&d.ends, ending{at: max(r.End, d.now), refund: store.Refund{
				Key: d.requests[j].Key, Charge: decision.Charge, Units: p.Units, Source: decision.Source,
			}})
		}
	}
}

// has reports whether an earlier handler has charged the request to the limit.
func (d *decider) has(p *Part) bool {
	for _, s := range d.charged {
		if s.zone == p.Zone && s.client == p.Client {
			return true
		}
	}
	return false
}

// passedOver reports whether a part is a limit that an earlier handler has charged.
func (d *decider) passedOver(i int, p *Part) bool {
	return d.verdicts[i] == silent && (p.Kind == Counts || p.Kind == Holds) && d.has(p)
}
