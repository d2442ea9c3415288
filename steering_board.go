package distributedratelimit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// The classes of notices on the board of a store. The name of a notice begins with the
// store's name of the zone and a zero byte.
const (
	classBan      = 'b' // then follows the hash of the key
	classOverride = 'o' // then follows the plan, if the zone has plans
)

// keyHash stands for a key on the board, where a key that is a secret must not stand.
type keyHash = [16]byte

// keyHasher is a store module that hashes keys in a way that only instances with its
// settings know.
type keyHasher interface{ HashKey(client string) [16]byte }

func (b *backend) hashKey(client string) keyHash {
	if h, ok := b.store.(keyHasher); ok {
		return h.HashKey(client)
	}
	sum := sha256.Sum256([]byte(client))
	return keyHash(sum[:16])
}

// banByHand is a ban that an operator has set, on whatever instance.
type banByHand struct {
	store  string // name of the data that the key is in
	zone   string // name of the zone; whether this configuration has it or not
	dryRun bool   // it is of the dry run of that name, which refuses nobody
	// key is the readable key, if whoever set the ban gave it, shortened to maxReadable;
	// "" otherwise.
	key   string
	id    string    // names the ban, where the key is unknown
	set   time.Time // by the clock of the instance that set it
	until time.Time // by the clock of this one

	name string // of the notice
}

// banIDSize is how many characters the id of a ban has: enough for those of one board.
const banIDSize = 10

// override is another limit for a while that an operator has set, on whatever
// instance.
type override struct {
	store  string // name of the data that the zone is in
	zone   string // name of the zone; whether this configuration has it or not
	dryRun bool   // it is of the dry run of that name
	plan   string // whose limit it replaces; "" in a zone without a tier
	events int64  // the limit, 0 to store.MaxEvents; 0 refuses everything
	// window is that of the zone for which the limit was set, 0 if it was one of requests in
	// flight. For a zone with another one the number would say something else.
	window time.Duration
	note   string // why, in the operator's words; may be empty
	set    time.Time
	until  time.Time

	storeName string // the store's name of the zone
}

// noticeText is the text of a notice, in JSON. Unknown fields are left to later versions.
type noticeText struct {
	Set    int64  `json:"set"` // ms since 1970
	Key    string `json:"key,omitempty"`
	ID     string `json:"id,omitempty"` // of a ban
	Events int64  `json:"events,omitempty"`
	Window int64  `json:"window,omitempty"` // of the zone, in microseconds
	Note   string `json:"note,omitempty"`
}

func (t noticeText) text() string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // six bytes for each of such characters would be too many
	if err := encoder.Encode(t); err != nil {
		panic(err) // it is numbers and strings
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (z *Zone) banName(client string) string {
	hash := z.backend.hashKey(client)
	return z.storeName + "\x00" + string(hash[:])
}

func (z *Zone) overrideName(plan string) string { return z.storeName + "\x00" + plan }

// banNotice is the notice of a ban, without how long it lasts.
func (z *Zone) banNotice(client, readable string, now time.Time) store.Notice {
	n := store.Notice{Class: classBan, Name: z.banName(client)}
	text := noticeText{Set: now.UnixMilli(), ID: rand.Text()[:banIDSize], Key: readable}
	n.Text = text.text()
	if len(readable) > maxReadable || len(n.Name)+len(n.Text) > store.MaxNoticeBytes {
		text.Key = ""
		n.Text = text.text()
	}
	return n
}

func (z *Zone) overrideNotice(plan string, events int64, note string, now time.Time) store.Notice {
	return store.Notice{
		Class: classOverride, Name: z.overrideName(plan),
		Text: noticeText{Set: now.UnixMilli(), Events: events, Window: z.window.Microseconds(), Note: note}.text(),
	}
}

// inForce is what operators have changed of a zone. It does not change any more; nil is
// nothing.
type inForce struct {
	bans   map[keyHash]banByHand
	limits map[string]override // by plan
}

// limit is the limit of a plan, "" without plans, that is configured or overridden. The end
// is looked at, because nobody may watch the board at the moment.
func (f *inForce) limit(plan string, configured int64) int64 {
	if limit, ok := f.byHand(plan); ok {
		return limit
	}
	return configured
}

func (f *inForce) byHand(plan string) (limit int64, ok bool) {
	if f == nil || len(f.limits) == 0 {
		return 0, false
	}
	o, ok := f.limits[plan]
	return o.events, ok && time.Now().Before(o.until)
}

// limitOf is limit for a plan that was read from a request.
func (f *inForce) limitOf(plan []byte, configured int64) int64 {
	if f == nil || len(f.limits) == 0 {
		return configured
	}
	return f.limit(string(plan), configured)
}

func (f *inForce) allBans() (list []banByHand) {
	if f == nil {
		return nil
	}
	now := time.Now()
	for _, b := range f.bans {
		if now.Before(b.until) {
			list = append(list, b)
		}
	}
	return list
}

// steering is what the board of a store says, for the zones of all configurations that use
// the store's data. A reload changes nothing of it. The zero steering is ready, and it is
// safe for concurrent use.
type steering struct {
	mu sync.Mutex
	// started are the backends of configurations that run: one, and during a reload the
	// next one as well, which may fail to start yet. The last one watches the board.
	started []*backend
	watched func()              // ends the watching, nil if nobody watches yet
	inForce map[string]*inForce // by the store's name of the zone
	zones   map[*Zone]struct{}  // that are told
}

// add tells a zone what is in force from now on.
func (s *steering) add(z *Zone) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.zones == nil {
		s.zones = make(map[*Zone]struct{})
	}
	s.zones[z] = struct{}{}
	z.steering.Store(s.inForce[z.storeName].of(z))
}

// start has the backend of a configuration that runs from now on watch the board.
func (s *steering) start(b *backend) {
	s.mu.Lock()
	s.started = append(s.started, b)
	s.mu.Unlock()
	s.watch(b)
}

// watch watches the board, in the place of another backend, while b is the last one that
// was started. The store is not called under the lock: it may be about to call take.
func (s *steering) watch(b *backend) {
	steered, ok := b.store.(store.Steered)
	if !ok {
		return
	}
	stop := steered.WatchBoard(func(notices []store.Notice) { s.take(b, notices) })
	s.mu.Lock()
	if s.lastLocked() == b {
		stop, s.watched = s.watched, stop
	}
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (s *steering) lastLocked() *backend {
	if n := len(s.started); n > 0 {
		return s.started[n-1]
	}
	return nil
}

// leave ends what start began, and tells some zones nothing more.
func (s *steering) leave(b *backend, zones []*Zone) {
	s.mu.Lock()
	for _, z := range zones {
		delete(s.zones, z)
	}
	last := s.lastLocked()
	s.started = slices.DeleteFunc(s.started, func(other *backend) bool { return other == b })
	next, stop := s.lastLocked(), s.watched
	if last != b {
		stop = nil // another one watches
	} else if next == nil {
		s.watched = nil
	}
	s.mu.Unlock()
	switch {
	case last != b:
	case next != nil:
		s.watch(next) // which stops what b began
	case stop != nil:
		stop()
	}
}

// take takes in what is on the board.
func (s *steering) take(b *backend, notices []store.Notice) {
	now := time.Now()
	next := make(map[string]*inForce)
	for i := range notices {
		n := &notices[i]
		name, rest, ok := strings.Cut(n.Name, "\x00")
		var text noticeText
		if !ok || json.Unmarshal([]byte(n.Text), &text) != nil {
			continue
		}
		f := next[name]
		if f == nil {
			f = &inForce{bans: make(map[keyHash]banByHand), limits: make(map[string]override)}
			next[name] = f
		}
		zone, dryRun := strings.CutSuffix(name, dryRunSuffix)
		set, until := time.UnixMilli(text.Set), now.Add(n.Lasts)
		switch {
		case n.Class == classBan && len(rest) == len(keyHash{}):
			f.bans[keyHash([]byte(rest))] = banByHand{
				store: b.name, zone: zone, dryRun: dryRun, key: text.Key, id: text.ID, set: set, until: until, name: n.Name,
			}
		case n.Class == classOverride && text.Events >= 0 && text.Events <= store.MaxEvents:
			f.limits[rest] = override{
				store: b.name, zone: zone, dryRun: dryRun, plan: rest, events: text.Events,
				window: time.Duration(text.Window) * time.Microsecond, note: text.Note,
				set: set, until: until, storeName: name,
			}
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastLocked() != b {
		return // another one watches by now
	}
	before := s.inForce
	s.inForce = next
	for z := range s.zones {
		z.steering.Store(next[z.storeName].of(z))
	}
	b.logOverrides(before, next, now)
	b.logBans(before, next)
}

// logOverrides logs each override that begins, ends, or is another one.
func (b *backend) logOverrides(before, next map[string]*inForce, now time.Time) {
	fields := func(o override) []zap.Field {
		fields := []zap.Field{zap.String("store", o.store), zap.String("zone", o.zone), zap.Bool("dry_run", o.dryRun), zap.Int64("events", o.events), zap.Duration("window", o.window)}
		if o.plan != "" {
			fields = append(fields, zap.String("plan", bounded(o.plan)))
		}
		return append(fields, zap.String("note", bounded(o.note)), zap.Time("until", o.until.Truncate(time.Millisecond)))
	}
	differ(before, next, func(f, other *inForce) {
		for plan, o := range f.limits {
			if was, ok := other.override(plan); !ok || !was.set.Equal(o.set) || was.events != o.events || was.window != o.window {
				b.logger.Info("a limit is overridden by hand", fields(o)...)
			}
		}
	})
	differ(next, before, func(f, other *inForce) {
		for plan, o := range f.limits {
			if _, ok := other.override(plan); !ok {
				b.logger.Info("an override has ended; the configured limit holds again", append(fields(o), zap.Bool("early", now.Before(o.until.Add(-earlyBy))))...)
			}
		}
	})
}

// earlyBy is how long before its time an override must end to be called early: each
// instance has a clock of its own.
const earlyBy = time.Second

func (f *inForce) override(plan string) (override, bool) {
	if f == nil {
		return override{}, false
	}
	o, ok := f.limits[plan]
	return o, ok
}

// differ calls do with all zones that something is in force of in next, and with what was
// before.
func differ(before, next map[string]*inForce, do func(f, before *inForce)) {
	for name, f := range next {
		do(f, before[name])
	}
}

// logBans logs in one line how the bans by hand have changed: there may be many.
func (b *backend) logBans(before, next map[string]*inForce) {
	set, ended, total := 0, 0, 0
	differ(before, next, func(f, other *inForce) {
		total += len(f.bans)
		for hash, ban := range f.bans {
			if other == nil || !other.bans[hash].set.Equal(ban.set) {
				set++
			}
		}
	})
	differ(next, before, func(f, other *inForce) {
		for hash := range f.bans {
			if other == nil || other.bans[hash].set.IsZero() {
				ended++
			}
		}
	})
	if set+ended > 0 {
		b.logger.Info("bans by hand have changed", zap.String("store", b.name), zap.Int("set", set), zap.Int("ended", ended), zap.Int("in_force", total))
	}
}

func (s *steering) allBans() (list []banByHand) {
	for _, f := range s.all() {
		list = append(list, f.allBans()...)
	}
	return list
}

// allOverrides lists them by zone and plan.
func (s *steering) allOverrides() (list []override) {
	now := time.Now()
	for _, f := range s.all() {
		for _, o := range f.limits {
			if now.Before(o.until) {
				list = append(list, o)
			}
		}
	}
	slices.SortFunc(list, func(a, b override) int { return strings.Compare(a.storeName+"\x00"+a.plan, b.storeName+"\x00"+b.plan) })
	return list
}

func (s *steering) all() (list []*inForce) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.inForce {
		list = append(list, f)
	}
	return list
}
