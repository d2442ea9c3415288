package distributedratelimit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
)

// This file is what operators change by hand while a configuration runs: bans of
// keys, resets, and overrides of limits. All instances that use the store are told, see
// steering_board.go.
//
// All of it is safe for concurrent use, waits for the store for steerTime at most, and
// may be repeated after any error. Errors are for operators, name the remedy, and hold
// no secret and no key. An error that is a *steerError is a mistake of the caller; one that
// wraps a *[store.Error] is the store's, and one that wraps [store.ErrBoardFull] is for want of
// room.

const (
	// steerTime is how long an operator's change may wait for the store.
	steerTime = 2 * time.Second
	// banInLog is how long the log of a key has a ban by hand at most: until all instances
	// know the board, several times over. It is short, because what one operator does to the
	// board and to the log may come between what another one does to them: a ban that is
	// left in the log would be in no list, and it would stay there when the zone's window
	// changes.
	banInLog = 4 * holdsElsewhere
	// maxOverrides and maxBansByHand are how many the board of a store holds.
	maxOverrides  = 100
	maxBansByHand = store.MaxNotices
	// maxNote bounds the note of an override, in bytes.
	maxNote = 200
	// maxReadable bounds the readable key of a ban, in bytes.
	maxReadable = keys.MaxReadable
)

// steerError is a mistake in what an operator asks for.
type steerError struct{ error }

func mistaken(format string, args ...any) error {
	return &steerError{fmt.Errorf(format, args...)}
}

// steered is the zone's store, if it can be changed by hand.
func (z *Zone) steered() (store.Steered, error) {
	if z.backend != nil {
		if s, ok := z.backend.store.(store.Steered); ok {
			return s, nil
		}
	}
	return nil, errors.New("the store of this zone cannot be changed by hand: its module does not implement store.Steered")
}

// storeKey is a key of the zone in its store.
func (z *Zone) storeKey(client string) store.Key {
	return store.Key{Zone: z.storeName, Client: client, Window: z.window}
}

// checkLasts checks how long something is to hold, and rounds it.
func checkLasts(what string, lasts time.Duration) (time.Duration, error) {
	if lasts < store.MinNotice || lasts > store.MaxWindow {
		return 0, mistaken("%s of %v is not between %s and %s", what, lasts, windowText(store.MinNotice), windowText(store.MaxWindow))
	}
	return lasts.Truncate(time.Microsecond), nil
}

// ban refuses a key of the zone for so long from now on, 1 s to store.MaxWindow, in the
// place of any other ban of it, on all instances: about a second later at the latest. client
// is the key as [Zone.client] returns it; readable is what lists show, and may be
// empty: it is then shown nowhere, and no store holds it.
//
// The board is what instances go by, without asking the store. The log has the ban as well,
// for [banInLog], and so that no other ban outlasts this one. Zones with concurrent have no log.
func (z *Zone) ban(client, readable string, lasts time.Duration) error {
	s, err := z.steered()
	if err != nil {
		return err
	}
	if lasts, err = checkLasts("a ban", lasts); err != nil {
		return err
	}
	began := time.Now()
	notice := z.banNotice(client, readable, began)
	notice.Lasts = lasts
	switch err := s.Post(steerTime, notice, maxBansByHand); {
	case errors.Is(err, store.ErrBoardFull):
		return fmt.Errorf("%d bans by hand are in force, which is the most; end some, or keep these clients out with a matcher: %w", maxBansByHand, err)
	case err != nil:
		return fmt.Errorf("posting the ban: %w", err)
	}
	// If that fails, all instances know of the ban in time all the same.
	_ = z.amend(s, steerTime-time.Since(began), client, store.Amendment{Ban: min(lasts, banInLog)})
	return nil
}

// unban ends any ban of a key, that of block_for included. Unless keep is true it also
// forgets the units that count, as reset does. It reports whether a ban set by hand was
// on the board.
func (z *Zone) unban(client string, keep bool) (found bool, err error) {
	s, err := z.steered()
	if err != nil {
		return false, err
	}
	began := time.Now()
	if found, err = s.Withdraw(steerTime, classBan, z.banName(client)); err != nil {
		return false, fmt.Errorf("withdrawing the ban: %w", err)
	}
	if err := z.amend(s, steerTime-time.Since(began), client, store.Amendment{Unban: true, Empty: !keep}); err != nil {
		return found, fmt.Errorf("a ban by hand is withdrawn, but the log of the key is as it was; repeat it: %w", err)
	}
	return found, nil
}

// reset forgets the units that count for a key, and a ban of block_for with them, but no
// ban set by hand. Refusals that other instances remember end within a second. It is
// a mistake for a zone with concurrent.
func (z *Zone) reset(client string) error {
	s, err := z.steered()
	if err != nil {
		return err
	}
	if z.Concurrent != nil {
		return mistaken("zone %s limits how many requests are in flight and counts nothing else: its slots are free when these are over", z.Name)
	}
	if err := z.amend(s, steerTime, client, store.Amendment{Empty: true}); err != nil {
		return fmt.Errorf("resetting the key: %w", err)
	}
	return nil
}

// amend changes the log of a key, and what this instance counts by itself. A zone with
// concurrent has no log.
func (z *Zone) amend(s store.Steered, wait time.Duration, client string, amendment store.Amendment) error {
	if z.Concurrent != nil {
		return nil
	}
	key := z.storeKey(client)
	if err := s.Amend(wait, key, amendment); err != nil {
		return err
	}
	z.backend.Amended(key, amendment)
	return nil
}

// override replaces the limit of the zone for so long, 1 s to store.MaxWindow, on all
// instances. A zone with a tier needs the plan: one of the table, or "default" for all
// that are not in it; others need "". note is why, up to maxNote bytes, and may be empty.
func (z *Zone) override(plan string, events int64, lasts time.Duration, note string) error {
	s, err := z.steered()
	if err != nil {
		return err
	}
	if err := z.checkPlan(plan); err != nil {
		return err
	}
	most := int64(store.MaxEvents)
	if z.Concurrent != nil {
		most = inflight.MaxLimit
	}
	switch {
	case events < 0 || events > most:
		return mistaken("a limit of %d is not between 0 and %d", events, most)
	case len(note) > maxNote:
		return mistaken("the note has %d bytes; %d is the most", len(note), maxNote)
	case !utf8.ValidString(note):
		return mistaken("the note is not UTF-8")
	}
	if lasts, err = checkLasts("an override", lasts); err != nil {
		return err
	}
	notice := z.overrideNotice(plan, events, note, time.Now())
	notice.Lasts = lasts
	if notice.Validate(maxOverrides) != nil {
		return mistaken("the name of the plan and the note are too long together; shorten the note, leave control characters out of it, or rename the plan")
	}
	switch err := s.Post(steerTime, notice, maxOverrides); {
	case errors.Is(err, store.ErrBoardFull):
		return fmt.Errorf("%d overrides are in force, which is the most; end some, or change the configuration: %w", maxOverrides, err)
	case err != nil:
		return fmt.Errorf("posting the override: %w", err)
	}
	return nil
}

// endOverride ends the override of a zone, of one plan if the zone has a tier, and reports
// whether there was one.
func (z *Zone) endOverride(plan string) (found bool, err error) {
	s, err := z.steered()
	if err != nil {
		return false, err
	}
	// A plan that the configuration does not have any more may still have one.
	left := slices.ContainsFunc(z.overrides(), func(o override) bool { return o.plan == plan })
	if err := z.checkPlan(plan); err != nil && !left {
		return false, err
	}
	if found, err = s.Withdraw(steerTime, classOverride, z.overrideName(plan)); err != nil {
		return false, fmt.Errorf("withdrawing the override: %w", err)
	}
	return found, nil
}

// checkPlan checks that an override is of a plan exactly if the zone has plans.
func (z *Zone) checkPlan(plan string) error {
	if z.tier == nil {
		if plan != "" {
			return mistaken("zone %s has no plans; leave the plan out", z.Name)
		}
		return nil
	}
	if _, ok := z.tier.limits[plan]; ok || plan == wordDefault {
		return nil
	}
	plans := strings.Join(append(slices.Sorted(maps.Keys(z.tier.limits)), wordDefault), ", ")
	if plan == "" {
		return mistaken("zone %s has plans; say which one: %s", z.Name, plans)
	}
	return mistaken("zone %s has no plan %q; there are: %s", z.Name, bounded(plan), plans)
}

// overrides lists the overrides in force of a zone, by plan.
func (z *Zone) overrides() []override {
	if z.backend == nil {
		return nil
	}
	return slices.DeleteFunc(z.backend.lasting.steering.allOverrides(), func(o override) bool { return o.storeName != z.storeName })
}

// limitByHand is the limit that holds for a plan, if an operator has set it: as
// [Zone.limitOf] finds it for a request.
func (z *Zone) limitByHand(plan string) (limit int64, ok bool) {
	f := z.steering.Load()
	if z.tier == nil {
		_, ok = f.byHand("")
		return z.limitShown(), ok
	}
	if _, listed := z.tier.limits[plan]; listed {
		return f.byHand(plan)
	}
	if limit, ok = f.byHand(wordDefault); ok {
		return limit, true
	}
	return f.byHand(z.tier.defaultOf)
}

// bansByHand is how many bans set by hand are in force in a zone.
func (z *Zone) bansByHand() int { return len(z.steering.Load().allBans()) }

// bannedByHand returns the ban that was set by hand of a key, if one is in force.
func (z *Zone) bannedByHand(client string) (banByHand, bool) {
	f := z.steering.Load()
	if f == nil || len(f.bans) == 0 {
		return banByHand{}, false
	}
	b, ok := f.bans[z.backend.hashKey(client)]
	return b, ok && time.Now().Before(b.until)
}

// bannedFor is how long a key is banned by hand yet, 0 if it is not. It costs next to
// nothing while nothing is in force.
func (z *Zone) bannedFor(client string) time.Duration {
	if z.steering.Load() == nil {
		return 0
	}
	b, ok := z.bannedByHand(client)
	if !ok {
		return 0
	}
	return max(time.Until(b.until), 1)
}

// bansByHand lists the bans set by hand in the stores of the configuration, those of
// zones that it does not have included, the first one to end first.
func (a *App) bansByHand() (list []banByHand) {
	for _, b := range a.stores() {
		list = append(list, b.lasting.steering.allBans()...)
	}
	slices.SortStableFunc(list, func(a, b banByHand) int { return a.until.Compare(b.until) })
	return list
}

// stores are the backends of the configuration, one for each store's data.
func (a *App) stores() (list []*backend) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.backends {
		if !slices.ContainsFunc(list, func(other *backend) bool { return other.name == b.name }) {
			list = append(list, b)
		}
	}
	return list
}
