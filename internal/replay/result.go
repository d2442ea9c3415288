package replay

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Result is what became of the requests of logs. Its JSON form is for scripts.
type Result struct {
	Lines    int64 `json:"lines"`
	Bytes    int64 `json:"bytes"` // unpacked
	Requests int64 `json:"requests"`
	// Unlimited is how many requests no zone applies to.
	Unlimited int64 `json:"unlimited"`
	// Other, Broken and Long are lines that are no requests: of other loggers, not
	// readable, or longer than 8 MiB.
	Other  int64 `json:"other_lines"`
	Broken int64 `json:"broken_lines"`
	Long   int64 `json:"long_lines"`
	// Backwards is how many requests are left out, because they are more than a minute
	// older than others before them; Late how many lasted for more than a minute, and
	// were decided later than they came.
	Backwards int64 `json:"backwards"`
	Late      int64 `json:"late"`
	// From and To are when the first request was done, and the last one.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Logged compares with the decisions that stand in the log.
	Logged struct {
		Compared int64 `json:"compared"`
		Refused  int64 `json:"refused"`
		Differ   int64 `json:"differ"`
	} `json:"logged"`
	Zones []ZoneResult `json:"zones"`
	// Notes are sentences about what is not known.
	Notes []string `json:"notes,omitempty"`
	// Seconds is how long the replay took, and LinesPerSecond how fast it was.
	Seconds        float64 `json:"seconds"`
	LinesPerSecond float64 `json:"lines_per_second"`

	hosts map[string]int64
}

// ZoneResult is what one zone did.
type ZoneResult struct {
	Name     string `json:"zone"`
	Limit    string `json:"limit"`
	Key      string `json:"key"`
	DryRun   bool   `json:"dry_run,omitempty"`
	Requests int64  `json:"requests"`
	// Refused is how many of them would have been refused by this zone.
	Refused int64 `json:"refused"`
	Exempt  int64 `json:"exempt"`
	// Unknown is how many requests could not be decided, because the log lacks what
	// tells their clients apart.
	Unknown        int64    `json:"unknown,omitempty"`
	Clients        int      `json:"clients"`
	ClientsRefused int      `json:"clients_refused"`
	Others         int64    `json:"requests_of_others,omitempty"` // clients that found no room
	Most           []Client `json:"most_affected"`
	Worst          Minute   `json:"worst_minute"`
	// Curves are, for each window, which limits clients would not have noticed. Those of
	// a limit on requests in flight have the window 0.
	Curves []Curve  `json:"suggestions,omitempty"`
	Notes  []string `json:"notes,omitempty"`
	// Unreplayed is why the zone was not replayed.
	Unreplayed string `json:"not_replayed,omitempty"`

	buckets []Bucket
	window  time.Duration
}

// Client is one of those that would have been refused most often.
type Client struct {
	Key      string `json:"key"`
	Requests int64  `json:"requests"`
	Refused  int64  `json:"refused"`
}

// Minute is the requests of one minute.
type Minute struct {
	Start    time.Time `json:"start"`
	Requests int64     `json:"requests"`
	Refused  int64     `json:"refused"`
}

// Curve is what clients took at most in any interval of a window.
type Curve struct {
	Window Duration `json:"window"`
	// Limits has the suggestion for each share that was asked for.
	Limits []Suggestion `json:"limits"`

	most []int64 // of each client, ascending
}

// Suggestion is the least limit that a share of all clients would never have noticed.
type Suggestion struct {
	Share float64 `json:"share"`
	Limit int64   `json:"limit"`
}

// Duration is written as Caddyfiles do.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	left, text := time.Duration(d), ""
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if n := left / unit.size; n > 0 {
			text += fmt.Sprintf("%d%s", n, unit.name)
			left -= n * unit.size
		}
	}
	if left > 0 || text == "" {
		text += left.String()
	}
	return text
}

// mostAffected is how many clients are named.
const mostAffected = 10

func newResult(d *decider, p *pipeline, o *order, a *agreement, took time.Duration) *Result {
	r := &Result{
		Lines: p.lines, Bytes: p.bytes, Requests: p.requests, Unlimited: p.unlimited,
		Other: p.other, Broken: p.broken, Long: p.long,
		Late: o.late, Backwards: o.backwards,
		From: time.UnixMicro(p.first).UTC(), To: time.UnixMicro(p.last).UTC(),
		Seconds: took.Seconds(), LinesPerSecond: float64(p.lines) / max(took.Seconds(), 1e-6),
		hosts: p.hosts,
	}
	r.Logged.Compared, r.Logged.Differ, r.Logged.Refused = a.compared, a.differ, p.loggedRefused
	for _, s := range d.stats {
		r.Zones = append(r.Zones, s.result())
	}
	r.note(p.cut)
	return r
}

// note says what the figures leave out.
func (r *Result) note(cut []error) {
	for _, err := range cut {
		r.Notes = append(r.Notes, fmt.Sprintf("a log ended early, and what was read of it counts: %v", err))
	}
	if r.Broken > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%s lines are neither JSON nor in the common or combined format, and are left out; the last line of a log that is still written may be one", number(r.Broken)))
	}
	if r.Long > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%s lines are longer than 8 MiB, and are left out", number(r.Long)))
	}
	if r.Backwards > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%s requests are more than a minute older than others before them in the same log, and are left out; name logs of different times as separate files", number(r.Backwards)))
	}
	if r.Late > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%s requests lasted for more than a minute, and are decided as if they had come a minute before their end", number(r.Late)))
	}
	for i := range r.Zones {
		if r.Zones[i].Others > 0 {
			r.Notes = append(r.Notes, "there are more clients than are remembered: requests of the others are counted, but not by client; raise --max-clients")
			break
		}
	}
}

// Problem is why the result tells nothing, nil if it does. It names what to do.
// hosts are those of the configuration.
func (r *Result) Problem(hosts []string) error {
	switch {
	case r.Lines == 0:
		return errors.New("the log is empty; name a log that Caddy has written requests to (the directive log)")
	case r.Requests == 0:
		return fmt.Errorf("none of %s lines is a request: %s are of other loggers and %s cannot be read; name the access log (the directive log) in the format json, common or combined",
			number(r.Lines), number(r.Other), number(r.Broken))
	case r.Requests == r.Unlimited:
		configured := "no host in particular"
		if len(hosts) > 0 {
			configured = strings.Join(hosts, ", ")
		}
		return fmt.Errorf("no zone applies to any of %s requests. The log has the hosts %s; the configuration has %s. If they agree, see whether the matchers of the zones match; for a log that has none, name it with --host", number(r.Requests), r.hostList(), configured)
	case r.Backwards > r.Requests/2:
		return fmt.Errorf("%s of %s requests are more than a minute older than others before them; name logs of different times as separate files, which may be in any order", number(r.Backwards), number(r.Requests))
	}
	return nil
}

// hostList is the hosts that most requests have that no zone applies to.
func (r *Result) hostList() string {
	hosts := slices.SortedFunc(maps.Keys(r.hosts), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.hosts[b], r.hosts[a]), cmp.Compare(a, b))
	})
	more := ""
	if len(hosts) > 5 {
		hosts, more = hosts[:5], " and others"
	}
	for i := range hosts {
		if hosts[i] = Printable(hosts[i]); hosts[i] == "" {
			hosts[i] = "(none; the common format has no host)"
		}
	}
	return strings.Join(hosts, ", ") + more
}

func (s *zoneStats) result() ZoneResult {
	r := ZoneResult{
		Name: s.zone.Name, Limit: s.zone.Limit, Key: s.zone.Key, DryRun: s.zone.DryRun,
		Requests: s.requests, Refused: s.refused, Exempt: s.exempt, Unknown: s.unknown, Others: s.others,
		Clients: len(s.clients), Notes: s.zone.Notes, Unreplayed: s.zone.Unknown,
		Most: []Client{},
	}
	for _, c := range s.clients {
		if c.refused > 0 {
			r.ClientsRefused++
		}
	}
	r.Most = s.most()
	at, worst := s.minutes.worst()
	r.Worst = Minute{time.Unix(at*60, 0).UTC(), int64(worst.requests), int64(worst.refused)}
	r.buckets, r.window = s.minutes.buckets(), s.zone.Window
	r.Curves = s.curves()
	return r
}

// most is the clients that are refused most often.
func (s *zoneStats) most() []Client {
	type named struct {
		key string
		*client
	}
	var most []named
	order := func(a, b named) int {
		return cmp.Or(cmp.Compare(b.refused, a.refused), cmp.Compare(b.requests, a.requests), strings.Compare(a.key, b.key))
	}
	for key, c := range s.clients {
		if c.refused == 0 {
			continue
		}
		x := named{key, c}
		if len(most) == mostAffected && order(x, most[mostAffected-1]) > 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(most, x, order)
		most = slices.Insert(most, at, x)
		most = most[:min(len(most), mostAffected)]
	}
	list := make([]Client, 0, len(most))
	for _, x := range most {
		text := x.text
		if text == "" {
			text = s.zone.Show(x.key)
		}
		list = append(list, Client{Printable(text), x.requests, x.refused})
	}
	return list
}

func (s *zoneStats) curves() []Curve {
	if s.zone.Concurrent {
		curve := Curve{}
		for _, c := range s.clients {
			curve.most = append(curve.most, c.held)
		}
		slices.Sort(curve.most)
		return []Curve{curve}
	}
	var curves []Curve
	for i, window := range s.windows {
		curve := Curve{Window: Duration(window)}
		for _, c := range s.clients {
			curve.most = append(curve.most, c.maxima.of[i].most)
		}
		slices.Sort(curve.most)
		curves = append(curves, curve)
	}
	return curves
}

// Suggest fills in the limits that shares of the clients would never have noticed.
func (r *Result) Suggest(shares []float64) {
	for i := range r.Zones {
		for j := range r.Zones[i].Curves {
			c := &r.Zones[i].Curves[j]
			c.Limits = nil
			for _, share := range shares {
				if len(c.most) > 0 {
					c.Limits = append(c.Limits, Suggestion{share, c.limit(share)})
				}
			}
		}
	}
}

// limit is the least limit that a share of the clients would never have noticed.
func (c *Curve) limit(share float64) int64 {
	// 0.999 of 1000 is 999, whatever the last bit says.
	n := int(math.Ceil(share*float64(len(c.most)) - 1e-9))
	return c.most[min(max(n, 1), len(c.most))-1]
}

// share is the share of clients that would never have noticed a limit.
func (c *Curve) share(limit int64) float64 {
	n, _ := slices.BinarySearch(c.most, limit+1)
	return float64(n) / float64(max(len(c.most), 1))
}

// Bucket is the requests of some minutes.
type Bucket struct {
	Start             time.Time
	Minutes           int
	Requests, Refused int64
}

// maxBuckets is how many a plot has.
const maxBuckets = 240

// bucketMinutes are the sizes of buckets.
var bucketMinutes = []int64{1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 7200, 14400, 43200, 129600}

// buckets sums minutes up, so that there are not more than a plot can show.
func (m *minutes) buckets() (list []Bucket) {
	first, last := int64(0), int64(-1)
	m.each(func(n int64, _ minute) {
		if last < 0 {
			first = n
		}
		last = n
	})
	if last < 0 {
		return nil
	}
	size := bucketMinutes[len(bucketMinutes)-1]
	for _, s := range bucketMinutes {
		if last/s-first/s < maxBuckets {
			size = s
			break
		}
	}
	begin := first / size
	list = make([]Bucket, min(last/size-begin+1, 10*maxBuckets))
	for i := range list {
		list[i].Start, list[i].Minutes = time.Unix((begin+int64(i))*size*60, 0).UTC(), int(size)
	}
	m.each(func(n int64, x minute) {
		if i := n/size - begin; i < int64(len(list)) {
			list[i].Requests += int64(x.requests)
			list[i].Refused += int64(x.refused)
		}
	})
	return list
}
