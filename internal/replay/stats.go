package replay

import (
	"slices"
	"time"
)

// zoneStats is what is counted for a zone.
type zoneStats struct {
	zone    *Zone
	windows []time.Duration // of the maxima, ascending; none if nobody wants them
	left    *int            // how many clients may yet be remembered, of all zones together

	requests, refused, exempt, unknown int64
	clients                            map[string]*client
	others                             int64 // requests of clients that are not remembered
	minutes                            minutes
}

// client is what is counted for one client of a zone.
type client struct {
	text              string // what Zone.Show cannot tell
	requests, refused int64
	holding, held     int64 // slots, now and at most
	maxima            *maxima
}

func newZoneStats(z *Zone, windows []time.Duration, left *int) *zoneStats {
	s := &zoneStats{zone: z, left: left, clients: make(map[string]*client), minutes: minutes{hours: make(map[int64]*[60]minute)}}
	if len(windows) > 0 && !z.Concurrent {
		s.windows = slices.Clone(windows)
		if !slices.Contains(windows, z.Window) {
			s.windows = append(s.windows, z.Window)
		}
		slices.Sort(s.windows)
	}
	return s
}

// count counts a part, and returns its client, or nil.
func (s *zoneStats) count(now int64, p *Part, v verdict) *client {
	switch p.Kind {
	case Exempt:
		s.exempt++
		return nil
	case Unknown:
		s.unknown++
		return nil
	}
	s.requests++
	if v == refused {
		s.refused++
	}
	s.minutes.count(now, v == refused)
	c := s.client(p)
	if c == nil {
		if p.Client != "" {
			s.others++
		}
		return nil
	}
	c.requests++
	if v == refused {
		c.refused++
	}
	switch p.Kind {
	case Holds:
		c.holding++
		c.held = max(c.held, c.holding)
	case Counts:
		if c.maxima != nil {
			c.maxima.add(s.windows, now, p.Units)
		}
	}
	return c
}

// client is that of a part; nil if there is no room for it. A part that is refused
// whatever was counted may have none.
func (s *zoneStats) client(p *Part) *client {
	if c := s.clients[p.Client]; c != nil {
		return c
	}
	if *s.left <= 0 || p.Client == "" {
		return nil
	}
	*s.left--
	c := &client{text: p.Text}
	if len(s.windows) > 0 {
		c.maxima = newMaxima(s.windows)
	}
	s.clients[p.Client] = c
	return c
}

// minutes is how many requests came in each minute.
type minutes struct {
	hours map[int64]*[60]minute
	last  int64 // hour
	of    *[60]minute
}

type minute struct{ requests, refused uint32 }

// maxHours bounds the hours of which minutes are kept, some eleven years. A log in which
// times are nonsense has more.
const maxHours = 100_000

func (m *minutes) count(now int64, refused bool) {
	n := now / 60_000_000
	hour := n / 60
	if m.of == nil || hour != m.last {
		of := m.hours[hour]
		if of == nil {
			if len(m.hours) >= maxHours {
				return
			}
			of = new([60]minute)
			m.hours[hour] = of
		}
		m.last, m.of = hour, of
	}
	x := &m.of[n%60]
	x.requests++
	if refused {
		x.refused++
	}
}

// each calls do with each minute in which something came, in the order of time. n counts
// minutes since 1970.
func (m *minutes) each(do func(n int64, x minute)) {
	hours := make([]int64, 0, len(m.hours))
	for hour := range m.hours {
		hours = append(hours, hour)
	}
	slices.Sort(hours)
	for _, hour := range hours {
		for i, x := range m.hours[hour] {
			if x.requests > 0 {
				do(hour*60+int64(i), x)
			}
		}
	}
}

// worst is the minute with the most refusals; if nothing was refused, that with the most
// requests. The first of them, if there are several.
func (m *minutes) worst() (n int64, worst minute) {
	m.each(func(at int64, x minute) {
		if x.refused > worst.refused || worst.refused == 0 && x.requests > worst.requests {
			n, worst = at, x
		}
	})
	return n, worst
}
