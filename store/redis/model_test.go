package redis

import (
	"reflect"
	"time"
	"unsafe"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// model is what the script ought to do: store.Window for each key, written
// back only when the script would write.
type model struct {
	logs map[string]*store.Window
	name func(store.Key) string
	// origin is the identity of the server's data: what was charged in other
	// data is not refunded.
	origin int64
}

// take counts what is unreported and decides requests, and returns which logs it
// wrote.
func (m *model) take(now int64, requests []store.Request) (decisions []store.Decision, written map[string]time.Duration) {
	decisions = make([]store.Decision, len(requests))
	written = make(map[string]time.Duration)
	logs := make([]*store.Window, len(requests))
	all := true
	for i := range requests {
		r := &requests[i]
		name := m.name(r.Key)
		logs[i] = m.advanced(now, name, r.Window, written)
		total := inside(logs[i]).total
		if logs[i].CountUnreported(now, r); inside(logs[i]).total != total {
			m.logs[name], written[name] = logs[i], r.Window
		}
		decisions[i] = logs[i].Check(now, r)
		if logs[i].Ban(now, r, &decisions[i]) {
			m.logs[name], written[name] = logs[i], r.Window
		}
		all = all && (decisions[i].Granted || r.Shadow)
	}
	for i := range requests {
		r := &requests[i]
		if all && decisions[i].Granted {
			logs[i].Charge(now, r, &decisions[i])
			if decisions[i].Charged() {
				name := m.name(r.Key)
				m.logs[name], written[name] = logs[i], r.Window
			}
		}
	}
	return decisions, written
}

// refund refunds units.
func (m *model) refund(now int64, refunds []store.Refund) (units []int64, written map[string]time.Duration) {
	written = make(map[string]time.Duration)
	units = make([]int64, len(refunds))
	for i := range refunds {
		r := &refunds[i]
		name := m.name(r.Key)
		log := m.advanced(now, name, r.Window, written)
		before := inside(log).total
		if r.Origin == 0 || r.Origin == m.origin {
			log.Refund(now, r)
		}
		units[i] = before - inside(log).total
		if units[i] > 0 {
			m.logs[name], written[name] = log, r.Window
		}
	}
	return units, written
}

// amend changes a log by hand, which always writes it.
func (m *model) amend(now int64, key store.Key, amendment store.Amendment) (written map[string]time.Duration) {
	written = make(map[string]time.Duration)
	name := m.name(key)
	log := m.advanced(now, name, key.Window, written)
	log.Amend(now, &amendment)
	m.logs[name], written[name] = log, key.Window
	return written
}

// advanced returns a copy of a log as of now. A clock that stepped back is
// the one reason to write it back at once.
func (m *model) advanced(now int64, name string, window time.Duration, written map[string]time.Duration) *store.Window {
	log := &store.Window{}
	if old := m.logs[name]; old != nil {
		*inside(log) = *inside(old)
		inside(log).entries = append([]entry(nil), inside(old).entries...)
	}
	mark := inside(log).mark
	log.Advance(now, window)
	if len(inside(log).entries) > 0 && inside(log).mark != mark {
		m.logs[name], written[name] = log, window
		return m.advanced(now, name, window, written)
	}
	return log
}

// innards are the fields of store.Window, which only this test has a reason to
// see.
type innards struct {
	entries []entry
	total   int64
	mark    int64
	banned  int64
	byHand  bool
}

type entry struct{ first, stamp, units int64 }

func inside(w *store.Window) *innards {
	return (*innards)(unsafe.Pointer(w))
}

// sameInnards reports whether innards still is what store.Window is.
func sameInnards() bool {
	got, want := reflect.TypeFor[store.Window](), reflect.TypeFor[innards]()
	if got.NumField() != want.NumField() || got.Size() != want.Size() {
		return false
	}
	for i := range want.NumField() {
		if got.Field(i).Name != want.Field(i).Name || got.Field(i).Offset != want.Field(i).Offset {
			return false
		}
	}
	e, f := got.Field(0).Type.Elem(), reflect.TypeFor[entry]()
	return e.Size() == f.Size() && e.NumField() == 3 && e.Field(0).Name == "first" && e.Field(1).Name == "stamp" && e.Field(2).Name == "units"
}

// packed is a log as the script stores it.
func packed(w *store.Window, window time.Duration) string {
	in := inside(w)
	b := appendNumber(nil, in.mark, 7)
	b = appendNumber(b, in.total, 6)
	for _, e := range in.entries {
		b = appendNumber(b, e.stamp, 7)
		b = appendNumber(b, e.units, 6)
		b = appendNumber(b, e.stamp-e.first, 5)
	}
	if in.banned != 0 {
		b = appendNumber(b, in.banned, 7)
		b = appendNumber(b, w.Expires(window), 7)
		b = append(b, 0)
		if in.byHand {
			b[len(b)-1] = 1
		}
	}
	return string(b)
}

// appendNumber writes a number in so many bytes.
func appendNumber(b []byte, n int64, size int) []byte {
	for i := size - 1; i >= 0; i-- {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}
