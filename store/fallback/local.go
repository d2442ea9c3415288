package fallback

import (
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// Local decides in this process while a shared store is away. It is kept warm
// before, by what the store grants ([Local.Observe]), and what it granted itself
// is reported to the store afterwards: with the next call for the key
// ([Local.BeginReport]), or all at once ([Local.Flush]).
//
// # What it promises
//
// Each of A processes grants up to a share of a limit L, max(1, L/A) rounded
// down, and counts against it what it granted in the last window in any way,
// as far as it observed that. So in any interval of one window all of them
// together grant at most max(L, A) units by themselves, and with what the store
// granted in it at most L + max(L, A), while A is right.
//
// Bans that this process has seen the store decide hold here, too, until the store would
// have granted the request that it refused. What Local refuses by itself bans by the
// share, in this process only: the store is not told. A refund ends bans here as it
// does there.
//
// What it grants for a call that was certainly not executed is unreported, and is
// reported at most once: what a call of unknown fate was to report is not reported
// again. Units are reported as of a moment that is never earlier than when they
// were spent, so that the store never forgets them early, and later by a 15th
// of the window at most (more if reports fail again and again, when there is no
// room to keep entries apart).
//
// # Bounds
//
// Two tables of at most 65,536 keys each, one of logs and one of what is
// unreported. A stranger who invents clients can fill them. A key that is new to
// the logs then takes the place of the key with the smallest share used, as
// in [store.Memory], whose client gets that much back; what a key that is new to
// the other table spends is not reported, unless something there has expired. A
// key takes what it takes in Memory, and while something is unreported about 300
// bytes more, a kilobyte at most.
//
// # Time
//
// Times are read from the monotonic clock. Where it stops while the machine
// sleeps, units are held longer by the sleep, here and then by the store.
//
// A Local is safe for concurrent use, has no goroutine, and never waits for
// anything but its own short locks.
type Local struct {
	memory *store.Memory
	unreported
}

// localKeys bounds each table of a Local.
const localKeys = 65_536

// unreportedMark is set in the marks of charges that were noted as unreported when
// they were made. Marks are microseconds and far from this bit.
const unreportedMark = 1 << 62

// NewLocal returns a Local that knows of nothing granted.
func NewLocal() *Local {
	memory := store.NewMemory(localKeys)
	return &Local{memory: memory, unreported: newUnreported(memory.Now)}
}

// Observe takes in what the store, or a lease of it, granted to a call: the
// Units of each request that was charged count here too, as of now. Units of a
// lease are not spent yet, and count when they are. It is meant for every call
// that is granted. If a ban of the store refuses a request, its key is banned here. A
// key for which there is no room is passed over.
func (l *Local) Observe(requests []store.Request, decisions []store.Decision) {
	l.observe(requests, decisions, nil)
}

// observe is Observe, and tells what was charged here.
func (l *Local) observe(requests []store.Request, decisions []store.Decision, charges []store.Charge) {
	l.memory.Observe(requests, decisions, charges)
}

// Take decides requests as [store.Store] says, but with a share of each limit, that
// of one of so many instances: a limit above 0 is divided by them, and is 1 at
// least. Decisions are about the share. No leases are granted, and what the
// requests report is of no account: it was counted here when it was spent.
//
// fates tell what became of the requests at the store; nil is FateUnknown for all.
// What is charged for a request that is FateUnexecuted is reported later. Take fails
// only for requests that make no sense.
func (l *Local) Take(requests []store.Request, decisions []store.Decision, instances int, fates []store.Fate) error {
	return l.take(requests, decisions, instances, fates, func(int, *told) {})
}

// take is Take, and hands out where it will be known what became of what is
// unreported of a request.
func (l *Local) take(requests []store.Request, decisions []store.Decision, instances int, fates []store.Fate, noted func(i int, t *told)) error {
	var few [4]store.Request
	shares := append(few[:0], requests...)
	for i := range shares {
		request := &shares[i]
		if request.Limit > 0 {
			request.Limit = max(1, request.Limit/int64(max(1, instances)))
		}
		request.Lease, request.Unreported = 0, nil
	}
	if err := l.memory.Take(time.Time{}, 0, shares, decisions); err != nil {
		return err
	}
	for i := range requests {
		d := &decisions[i]
		d.Source = store.FromLocal
		if !d.Charged() || fates == nil || fates[i] != store.FateUnexecuted {
			continue
		}
		if t := l.add(&requests[i], d.Stamp); t != nil {
			d.Mark |= unreportedMark
			noted(i, t)
		}
	}
	return nil
}

// Refund gives back what Take charged, as [store.Store] says. What of it is
// unreported never will be reported; if it is just being reported, the store counts
// it unless that call turns out not to have been executed.
func (l *Local) Refund(refunds []store.Refund) {
	for _, r := range refunds {
		if r.Mark&unreportedMark != 0 {
			r.Mark &^= unreportedMark
			l.cancel(&r)
		}
		_ = l.memory.Refund(0, []store.Refund{r}) // never fails
	}
}
