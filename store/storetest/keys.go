package storetest

import (
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func windowsDiffer(f *fixture) {
	request := f.limit(1, long)
	f.granted(request)
	for _, window := range []time.Duration{long + time.Microsecond, long + time.Second, store.MaxWindow} {
		other := request
		other.Window = window
		f.granted(other)
		f.refused(other)
	}
	f.refused(request)

	// Two windows of one key in one call.
	a := f.limit(5, long)
	b := a
	b.Window = 2 * long
	f.take(a, b)
	f.take(b)
	f.remaining(a, 4)
	f.remaining(b, 3)
}

func zonesDiffer(f *fixture) {
	request := f.limit(1, long)
	f.granted(request)
	for _, zone := range []string{"a", "b", "a-b", "a.b_c"} {
		f.granted(f.zoned(zone, request))
		f.refused(f.zoned(zone, request))
	}
	// Where the zone ends and the client begins is no secret of a separator.
	one, two := request, request
	one.Key = store.Key{Zone: f.id + "-x", Client: "-y", Window: long}
	two.Key = store.Key{Zone: f.id + "-x-", Client: "y", Window: long}
	f.granted(one)
	f.granted(two)
}

func anyClient(f *fixture) {
	clients := []string{
		"", "\x00", "\x00\x00", "\xff", "\r\n", "a\r\n$1\r\nb", "{a}", "a:b", "a b", "*", "'\"\\", "ÿ", "\xc3\x28", "0", "00",
		strings.Repeat("\x00", store.MaxClientBytes),
		strings.Repeat("\x00", store.MaxClientBytes-1),
		strings.Repeat("\xff", store.MaxClientBytes),
		strings.Repeat("x", store.MaxClientBytes-1) + "y",
		strings.Repeat("x", store.MaxClientBytes),
	}
	request := f.zoned("clients", f.limit(1, long))
	for round := range 2 {
		for _, client := range clients {
			request.Key.Client = client
			if a := f.take(request)[0]; a.Granted != (round == 0) {
				f.Errorf("round %d: client %q: %+v", round, client, a)
			}
		}
	}
}
