package caddytest

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// One operator bans a key while another one unbans it, on another instance: what the first
// one does to the key's log may come after all that the second one does. Such a ban is in no
// list, and so it ends within seconds.
func TestBanThatComesAfterTheUnban(t *testing.T) {
	server := redistest.Start(t)
	e := start(t, steeredSite("redis redis://"+server.Addr))
	e.steer("PUT", "zones/z/bans?key="+alice+"&for=30d")
	log := ""
	for _, key := range server.Keys(t) {
		if strings.HasPrefix(key, "drl:2:z:") {
			log = key
		}
	}
	value, lasts := server.Do(t, "GET", log), server.Do(t, "PTTL", log).(int64)
	if lasts <= 0 || lasts > 10_000 {
		t.Errorf("the ban is in the log of the key for %d ms", lasts)
	}
	server.Do(t, "DEL", log)
	e.blocked(alice, "http://a.test/", 29*24*3600, 30*24*3600) // by what is on the board

	e.steer("DELETE", "zones/z/bans?key="+alice)
	server.Do(t, "SET", log, value, "PX", lasts)
	var bans []struct{ Key string }
	if e.adminGet("bans", &bans); len(bans) != 0 {
		t.Errorf("bans %+v, want none", bans)
	}
	began := time.Now()
	soon(t, "it ends", func() bool { return e.get(alice, "http://a.test/").StatusCode == http.StatusOK })
	t.Logf("a ban that is in no list has ended after %v", time.Since(began).Round(time.Millisecond))
}
