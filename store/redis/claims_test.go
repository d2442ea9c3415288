package redis

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/inflight"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// claimer has the script decide claims at moments of the test's choice.
type claimer struct {
	conn *redistest.Conn
	sha  string
	keys *keys
}

func newClaimer(t testing.TB, server *redistest.Server) *claimer {
	t.Helper()
	sha := server.Do(t, "SCRIPT", "LOAD", withClock(t, inflightSource)).(string)
	return &claimer{conn: server.Dial(t), sha: sha, keys: newKeys(DefaultKeyPrefix, nil)}
}

// claim makes claims in one run, naming some that are dead, and returns the replies.
func (c *claimer) claim(now time.Time, dead []string, claims ...inflight.Claim) ([]inflight.Outcome, [][]string, error) {
	var calls []*call
	for i := range claims {
		calls = append(calls, c.keys.claimCall(patience, &claims[i], dead))
	}
	command := commandOf(calls...)
	n := command[2].(int)
	args := append([]any{"EVALSHA", c.sha}, command[2:3+n]...)
	micros := now.UnixMicro()
	args = append(args, strconv.FormatInt(micros/1e6, 10), strconv.FormatInt(micros%1e6, 10))
	got, err := c.conn.Do(append(args, command[3+n:]...)...)
	if err != nil {
		return nil, nil, err
	}
	reply := got.(string)
	var outcomes []inflight.Outcome
	var suspects [][]string
	for reply != "" {
		size := claimSize(reply)
		if size < 0 {
			return nil, nil, fmt.Errorf("reply %q", reply)
		}
		outcomes = append(outcomes, inflight.Outcome{Granted: numberIn(reply, 0, 5), InFlight: numberIn(reply, 5, 6)})
		names := []string(nil)
		for at := claimReply; at < size; at += inflight.LifeSize {
			names = append(names, reply[at:at+inflight.LifeSize])
		}
		suspects = append(suspects, names)
		reply = reply[size:]
	}
	if len(outcomes) != len(claims) {
		return nil, nil, fmt.Errorf("%d outcomes of %d claims", len(outcomes), len(claims))
	}
	return outcomes, suspects, nil
}

// TestClaimModel: the script decides as the records in Go do.
func TestClaimModel(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := newClaimer(t, server)
	rapid.Check(t, func(t *rapid.T) {
		if _, err := c.conn.Do("FLUSHALL"); err != nil {
			t.Fatal(err)
		}
		records := storetest.NewRecords()
		now := time.UnixMicro(1_700_000_000_000_000)
		lives := []string{"aaaaaaaa", "bbbbbbbb", "aaaabbbb", "cccccccc"}
		seqs := make(map[string]int64)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "pass") == 0 {
				now = now.Add(time.Duration(rapid.SampledFrom([]int64{1, 999_999, 15_000_000, 15_000_001, 59_000_000, 60_000_000, 10_800_000_001, -1, -20_000_000}).Draw(t, "time")) * time.Microsecond)
			}
			dead := []string(nil)
			if rapid.IntRange(0, 2).Draw(t, "kill") == 0 {
				dead = append(dead, rapid.SampledFrom(lives).Draw(t, "dead"), "xxxxaaaa", "bbbbyyyy")
			}
			var claims []inflight.Claim
			for range rapid.IntRange(1, 4).Draw(t, "claims") {
				life := rapid.SampledFrom(lives).Draw(t, "life")
				seqs[life]++
				claim := inflight.Claim{
					Key:   inflight.Key{Zone: "zone", Client: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "client")},
					Limit: rapid.Int64Range(1, 12).Draw(t, "limit"), Life: life,
					Seq:  max(1, seqs[life]-rapid.SampledFrom([]int64{0, 0, 0, 0, 1, 3}).Draw(t, "late")),
					Held: rapid.Int64Range(0, 4).Draw(t, "held"), Want: rapid.Int64Range(0, 5).Draw(t, "want"),
					Keep: rapid.IntRange(0, 2).Draw(t, "keep") == 0,
				}
				if rapid.IntRange(0, 4).Draw(t, "renamed") == 0 {
					other := rapid.SampledFrom(lives).Draw(t, "former")
					if other != life {
						claim.Former = []string{"xxxxaaaa", "bbbbyyyy", other}
					}
				}
				claims = append(claims, claim)
			}
			got, suspects, err := c.claim(now, dead, claims...)
			if err != nil {
				t.Fatal(err)
			}
			for i := range claims {
				want, aged := records.DecideNaming(claims[i], dead, now)
				slices.Sort(aged)
				slices.Sort(suspects[i])
				if got[i] != want || !slices.Equal(aged, suspects[i]) {
					t.Fatalf("%+v at %v, dead %q: %+v %q, want %+v %q", claims[i], now, dead, got[i], suspects[i], want, aged)
				}
			}
			keys, err := c.conn.Do("KEYS", "*")
			if err != nil || len(keys.([]any)) != records.Keys() {
				t.Fatalf("%v records (%v), want %d", keys, err, records.Keys())
			}
			for _, key := range keys.([]any) {
				if ttl, err := c.conn.Do("PTTL", key); err != nil || ttl.(int64) <= 0 || ttl.(int64) > 10_800_000 {
					t.Fatalf("key %v lives for %v ms (%v)", key, ttl, err)
				}
			}
		}
	})
}

// TestClaimGarbage: a record that is none is replaced.
func TestClaimGarbage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	c := newClaimer(t, server)
	claim := inflight.Claim{Key: inflight.Key{Zone: "zone", Client: "client"}, Limit: 3, Life: "aaaaaaaa", Seq: 1, Want: 2}
	for _, spoil := range [][]any{{"SET", "", "garbage"}, {"SET", "", ""}, {"HSET", "", "a", "b"}, {"RPUSH", "", "a"}} {
		server.Do(t, "FLUSHALL")
		spoil[1] = c.keys.claimKey(&claim.Key)
		server.Do(t, spoil...)
		got, _, err := c.claim(time.Now(), nil, claim)
		if err != nil || got[0].Granted != 2 || got[0].InFlight != 2 {
			t.Errorf("%v: %+v, %v", spoil, got, err)
		}
	}
}

func TestClaimKey(t *testing.T) {
	t.Parallel()
	k := newKeys("drl", nil)
	r := one("client", 1)
	log, record := k.of(&r.Key), k.claimKey(&inflight.Key{Zone: "a{b}:c", Client: "client"})
	if !strings.HasPrefix(record, "drl:s1:a%7Bb%7D%3Ac:{") || redistest.Slot(log) != redistest.Slot(record) {
		t.Errorf("keys %q and %q", log, record)
	}
	l := newLives("drl")
	defer l.attend(func() string { return "aaaaaaaa" }, nil)()
	for _, list := range []string{listKey("drl", ""), listKey("drl", "1a")} {
		told := l.tell(list)
		if redistest.Slot(told[0]) != redistest.Slot(list) || !strings.HasPrefix(told[0], "drl:lives:") || told[1] != "aaaaaaaa" {
			t.Errorf("%q is told with %q", list, told)
		}
	}
}

// lifeOf is a process on a parish: it has one life, and notes when that is in doubt.
type lifeOf struct {
	*lives
	presence *presence
	name     string
	doubts   int
}

func newLifeOf(name string) *lifeOf {
	l := &lifeOf{lives: newLives("drl"), presence: newPresence(1), name: name}
	l.attend(func() string { return l.name }, func(string) { l.doubts++ })
	return l
}

// beatLives is a heartbeat of each process, every second for a time.
func (p *parish) beatLives(d time.Duration, all ...*lifeOf) {
	p.t.Helper()
	for range d / time.Second {
		p.now = p.now.Add(time.Second)
		for _, l := range all {
			told := l.tell(parishKey)
			cmd, _ := l.presence.command(parishKey, false, told...)
			reply := p.sendLives(cmd)
			if err := l.heard(parishKey, told[1], reply[beatReply:], p.origin, p.now); err != nil {
				p.t.Fatal(err)
			}
		}
	}
}

// sendLives has the server execute a beat that carries lives.
func (p *parish) sendLives(cmd *beatCommand) string {
	p.t.Helper()
	args := slices.Clone(cmd.Args())
	args[1] = p.script
	micros := p.now.UnixMicro()
	reply, err := p.conn.Do(slices.Insert(args, 5, any(micros/1e6), any(micros%1e6))...)
	if err != nil {
		p.t.Fatal(err)
	}
	return reply.(string)
}

// deaths wants a to know certain lives to be dead, and no others.
func (p *parish) deaths(a *lifeOf, want ...string) {
	p.t.Helper()
	var got []string
	for _, name := range []string{"a_______", "b_______", "c_______", "unknown_"} {
		if a.dead(name) {
			got = append(got, name)
		}
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("%q takes %q for dead, want %q", a.name, got, want)
	}
}

func TestLives(t *testing.T) {
	t.Parallel()
	p := newParish(t)
	a, b, c := newLifeOf("a_______"), newLifeOf("b_______"), newLifeOf("c_______")
	p.beatLives(14*time.Second, a, b, c)
	p.deaths(a) // it is too early to tell
	p.beatLives(2*time.Second, a, b, c)
	p.deaths(a, "unknown_")

	p.beatLives(13*time.Second, a, b) // c is gone
	p.deaths(a, "unknown_")
	p.beatLives(4*time.Second, a, b)
	p.deaths(a, "c_______", "unknown_")
	p.beatLives(time.Second, c, a, b)
	p.deaths(a, "unknown_") // it was only paused
	if a.doubts != 0 || b.doubts != 0 || c.doubts != 1 {
		t.Errorf("doubts %d, %d, %d", a.doubts, b.doubts, c.doubts)
	}

	// A short pause is none.
	p.beatLives(10*time.Second, a, b)
	p.beatLives(time.Second, a, b, c)
	if c.doubts != 1 {
		t.Error("a pause of 10 s is taken for a loss")
	}
}

// TestLivesOfAnEmptyServer: a server that lost its list proves nothing, and nobody's
// slots are certain.
func TestLivesOfAnEmptyServer(t *testing.T) {
	t.Parallel()
	p := newParish(t)
	a, b := newLifeOf("a_______"), newLifeOf("b_______")
	p.beatLives(20*time.Second, a, b)
	p.server.Do(t, "FLUSHALL")
	p.beatLives(time.Second, a)
	p.deaths(a)
	p.beatLives(10*time.Second, a)
	p.deaths(a)
	p.beatLives(time.Second, a, b)
	if a.doubts != 1 || b.doubts != 1 {
		t.Errorf("doubts %d and %d, want one each", a.doubts, b.doubts)
	}
	p.beatLives(10*time.Second, a, b)
	p.deaths(a, "c_______", "unknown_")
}

// TestLivesAfterSilence: after an outage nobody has been heard of for as long as it
// lasted, which proves nothing; nor does a clock that is set.
func TestLivesAfterSilence(t *testing.T) {
	t.Parallel()
	p := newParish(t)
	a, b := newLifeOf("a_______"), newLifeOf("b_______")
	p.beatLives(20*time.Second, a, b)
	a.silent(parishKey)
	p.now = p.now.Add(time.Minute)
	p.beatLives(5*time.Second, a)
	p.deaths(a)
	p.beatLives(time.Second, a, b)
	p.beatLives(30*time.Second, a, b)
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		p.now = p.now.Add(step)
		p.beatLives(time.Second, a)
		if a.dead(b.name) {
			t.Errorf("dead, since the clock was set by %v", step)
		}
		p.beatLives(2*time.Second, b)
	}
}

// TestLivesOfAnotherServer: a server that took over may lack the latest claims.
func TestLivesOfAnotherServer(t *testing.T) {
	t.Parallel()
	p := newParish(t)
	a := newLifeOf("a_______")
	p.beatLives(2*time.Second, a)
	for i, origin := range []int64{7, 7, 8, 0, 8, 9} {
		p.origin = origin
		p.beatLives(2*time.Second, a)
		if want := []int{0, 0, 1, 1, 1, 2}[i]; a.doubts != want {
			t.Errorf("origin %d: %d doubts, want %d", origin, a.doubts, want)
		}
	}
}

// TestLivesElsewhere: who is alive on one server of a Cluster is not dead on another.
func TestLivesElsewhere(t *testing.T) {
	t.Parallel()
	l := newLives("drl")
	defer l.attend(func() string { return "a_______" }, func(string) {})()
	now := time.Now()
	birth := strings.Repeat("\x00", 7)
	for range 40 {
		now = now.Add(time.Second)
		for list, others := range map[string]string{"drl:instances:{1}": "b_______", "drl:instances:{2}": ""} {
			if err := l.heard(list, "a_______", birth+"\x01"+others, 1, now); err != nil {
				t.Fatal(err)
			}
		}
	}
	if l.dead("b_______") || l.dead("a_______") || !l.dead("c_______") {
		t.Error("wrong")
	}
	l.silent("drl:instances:{1}")
	l.silent("drl:instances:{2}")
	if l.dead("c_______") {
		t.Error("dead without contact")
	}
	if names := slices.Collect(maps.Keys(l.lists)); len(names) != 2 {
		t.Errorf("lists %q", names)
	}
}
