package distributedratelimit

import (
	"errors"
	"time"
)

// This file is what operators change by hand while a configuration runs: bans of
// keys, resets, and overrides of limits. All instances that use the store are told.
//
// All of it is safe for concurrent use, waits for the store for steerTime at most, and
// may be repeated after any error. Errors are for operators, name the remedy, and hold
// no secret and no key. An error that is a *steerError is a mistake of the caller; one that
// wraps a *[store.Error] is the store's.

const (
	// steerTime is how long an operator's change may wait for the store.
	steerTime = 2 * time.Second
	// maxOverrides and maxBansByHand are how many the board of a store holds.
	maxOverrides  = 100
	maxBansByHand = 1000
	// maxNote bounds the note of an override, in bytes.
	maxNote = 200
	// maxReadable bounds the readable key of a ban, in bytes.
	maxReadable = 200
)

// steerError is a mistake in what an operator asks for.
type steerError struct{ error }

// banByHand is a ban that an operator has set, on whatever instance.
type banByHand struct {
	store  string // name of the data that the key is in
	zone   string // name of the zone; whether this configuration has it or not
	dryRun bool   // it is of the dry run of that name, which refuses nobody
	// key is the readable key, if whoever set the ban gave it, shortened to maxReadable;
	// "" otherwise.
	key   string
	set   time.Time // by the clock of the instance that set it
	until time.Time // by the clock of this one
}

// override is another limit for a while that an operator has set, on whatever
// instance.
type override struct {
	store  string // name of the data that the zone is in
	zone   string // name of the zone; whether this configuration has it or not
	dryRun bool   // it is of the dry run of that name
	plan   string // whose limit it replaces; "" in a zone without a tier
	events int64  // the limit, 0 to store.MaxEvents; 0 refuses everything
	note   string // why, in the operator's words; may be empty
	set    time.Time
	until  time.Time
}

var errNotYet = errors.New("not yet")

// zonesOf returns the limits of a name: one for each store that a zone of the name uses,
// and for its dry run. Each stands for the zones of the limit in all handlers. Limits in
// force come before dry runs. It is empty if the configuration has no such zone.
func (a *App) zonesOf(name string) []*Zone { return nil }

// ban refuses a key of the zone for so long from now on, 1 s to store.MaxWindow, in the
// place of any other ban of it, on all instances: about a second later at the latest. client
// is the key as [Zone.client] returns it; readable is what lists show, and may be
// empty: it is then shown nowhere, and no store holds it.
func (z *Zone) ban(client, readable string, lasts time.Duration) error { return errNotYet }

// unban ends any ban of a key, that of block_for included. Unless keep is true it also
// forgets the units that count, as reset does. It reports whether a ban set by hand was
// on the board.
func (z *Zone) unban(client string, keep bool) (found bool, err error) { return false, errNotYet }

// reset forgets the units that count for a key, and a ban of block_for with them, but no
// ban set by hand. Refusals that other instances remember end within a second. It is
// a mistake for a zone with concurrent.
func (z *Zone) reset(client string) error { return errNotYet }

// override replaces the limit of the zone for so long, 1 s to store.MaxWindow, on all
// instances. A zone with a tier needs the plan: one of the table, or "default" for all
// that are not in it; others need "". note is why, up to maxNote bytes, and may be empty.
func (z *Zone) override(plan string, events int64, lasts time.Duration, note string) error {
	return errNotYet
}

// endOverride ends the override of a zone, of one plan if the zone has a tier, and reports
// whether there was one.
func (z *Zone) endOverride(plan string) (found bool, err error) { return false, errNotYet }

// overrides lists the overrides in force of a zone, by plan.
func (z *Zone) overrides() []override { return nil }

// bansByHand is how many bans set by hand are in force in a zone.
func (z *Zone) bansByHand() int { return 0 }

// bansByHand lists the bans set by hand in the stores of the configuration, those of
// zones that it does not have included, the first one to end first.
func (a *App) bansByHand() []banByHand { return nil }

// overrides lists the overrides in the stores of the configuration, those of zones that
// it does not have included, by zone and plan.
func (a *App) overrides() []override { return nil }
