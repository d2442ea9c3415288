package distributedratelimit

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/settings"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// checkBlockFor checks the length of bans.
func (z *Zone) checkBlockFor() *settings.Mistake {
	d := time.Duration(z.BlockFor)
	switch {
	case d == 0:
		return nil
	case d > 0 && d < time.Microsecond:
		return settings.Wrong("block_for", "block_for %v is too short; in JSON a bare number is in nanoseconds: write \"%[2]ds\"", d, int64(d))
	case d < time.Second || d > store.MaxWindow:
		return settings.Wrong("block_for", "block_for %s is not between 1s and %s", windowText(d), windowText(store.MaxWindow))
	case d%time.Microsecond != 0:
		return settings.Wrong("block_for", "block_for %v is finer than a microsecond; round it", d)
	case z.Events != nil && *z.Events == 0:
		return settings.Wrong("block_for", "block_for %s: events 0 refuses everything already; remove block_for", windowText(d))
	}
	return nil
}

func (z *Zone) blockText() string {
	if z.BlockFor == 0 {
		return "no block_for"
	}
	return "block_for " + windowText(time.Duration(z.BlockFor))
}

// bans remembers which bans of a zone this instance has met, so that each is
// logged and counted once. It is safe for concurrent use; the zero bans is ready.
type bans struct {
	mu    sync.Mutex
	known map[string]time.Time // when they end, or later
}

// bansKept bounds what strangers can make a zone remember. A ban that was forgotten
// is logged again.
const bansKept = 4096

// meets reports whether a ban that lasts for some time yet is new to the instance.
func (b *bans) meets(client string, rest time.Duration) bool {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if end, ok := b.known[client]; ok && now.Before(end) {
		return false
	}
	if b.known == nil {
		b.known = make(map[string]time.Time)
	}
	if len(b.known) >= bansKept {
		b.makeRoom(now)
	}
	b.known[client] = now.Add(rest)
	return true
}

func (b *bans) makeRoom(now time.Time) {
	for client, end := range b.known {
		if !now.Before(end) {
			delete(b.known, client)
		}
	}
	// Many at a time: else each request of a flood would look through all of them.
	for client := range b.known {
		if len(b.known) <= bansKept/2 {
			return
		}
		delete(b.known, client)
	}
}

// ends forgets the ban of a client whose request was granted.
func (b *bans) ends(client string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.known, client)
}

// noteBan tells of a ban that a decision begins, or that began elsewhere.
func (e *evaluation) noteBan(v *verdict) {
	switch {
	case v.zone.BlockFor == 0:
		return
	case v.Granted:
		v.zone.bans.ends(v.client)
		return
	case !v.Blocked || !v.zone.bans.meets(v.client, v.RetryAfter):
		return
	}
	v.zone.counters.ban()
	suppressed, ok := v.zone.banLog.Allow(refusalLines, time.Second)
	if !ok {
		return
	}
	blockFor := time.Duration(v.zone.BlockFor)
	e.h.app.events.emit(eventKeyBlocked, map[string]any{
		"zone": v.zone.Name, "client_ip": e.charges.client.String(), "block_for": blockFor.Seconds(),
		"retry_after": v.RetryAfter.Seconds(), "dry_run": v.zone.DryRun, "suppressed": suppressed,
	})
	if !e.h.logger.Core().Enabled(zap.InfoLevel) {
		return
	}
	fields := []zap.Field{
		zap.String("zone", v.zone.Name),
		zap.Stringer("client_ip", e.charges.client),
		zap.Duration("block_for", blockFor),
		zap.Duration("retry_after", v.RetryAfter),
		zap.Bool("dry_run", v.zone.DryRun),
		zap.Int64("suppressed", suppressed),
	}
	if e.h.LogKey {
		fields = append(fields, zap.String("key", v.zone.readable(&e.keys, e.charges.client, v.client)))
	}
	e.h.logger.Info("client banned", fields...)
}
