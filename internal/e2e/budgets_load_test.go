package e2e

import (
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/llmtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// llmRecord is what a crowd of requests has met.
type llmRecord struct {
	mu     sync.Mutex
	sent   map[string]time.Time // by the number of a request
	status map[int]int
}

const numberHeader = "LLM-Number"

// ask sends a numbered request, and returns when it may try again.
func (r *llmRecord) ask(t *testing.T, site string, e llmEndpoint, number int, behaviour string, request map[string]any) (granted bool, wait time.Duration) {
	t.Helper()
	name := strconv.Itoa(number)
	r.mu.Lock()
	if r.sent == nil {
		r.sent, r.status = make(map[string]time.Time), make(map[int]int)
	}
	r.sent[name] = time.Now()
	r.mu.Unlock()
	resp, err := llmPost(t.Context(), site, e.path, behaviour, request, caseHeader, "team", numberHeader, name)
	if err != nil {
		t.Errorf("request %d: %v", number, err)
		return false, time.Second
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("request %d: %v", number, err)
	}
	r.mu.Lock()
	r.status[resp.StatusCode]++
	r.mu.Unlock()
	seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return resp.StatusCode == http.StatusOK, time.Duration(seconds) * time.Second
}

// spans are what requests spent: at some moment between their sending and their
// arrival they were reserved.
func (r *llmRecord) spans(ledger []llmtest.Entry) (spans []storetest.Span) {
	for _, entry := range ledger {
		spans = append(spans, storetest.Span{From: r.sent[entry.Header.Get(numberHeader)], To: entry.Began, Units: int64(entry.Tokens.Total())})
	}
	return spans
}

// TestBudgetHolds: 200 requests at once, each bounded at 1,000 tokens of output
// and spending all of them, through three Caddys: they spend no more than the
// budget, for streams and for whole responses.
func TestBudgetHolds(t *testing.T) {
	const limit = 50_000
	for i, e := range llmEndpoints {
		stream := i > 0
		redis, backend := redistest.Start(t), llmtest.Start(t)
		site := budgeted{events: strconv.Itoa(limit), window: "1h", upstream: backend.Addr}
		var caddys []*process
		for range 3 {
			caddys = append(caddys, site.start(t, redis))
		}
		var rec llmRecord
		request := e.request(1000, "stream", stream)
		crowd(200, func(n int) {
			rec.ask(t, caddys[n%3].url(), e, n, "output=1000000,every=10ms,events=20", maps.Clone(request))
		})
		spent, _ := llmtest.Spent(backend.Since(0))
		units := chargedUntil(t, redis, func(units int64) bool { return units == int64(spent) })
		t.Logf("%s, stream %t: %d of %d spent, %d charged, by status %v", e.name, stream, spent, limit, units, rec.status)
		if spent > limit || units > limit || units != int64(spent) {
			t.Errorf("%s, stream %t: spent %d and charged %d, budget %d", e.name, stream, spent, units, limit)
		}
		// What all of them reserve does not fit at once, but after
		// settlements another one may.
		if least := limit * 7 / 10; spent < least || rec.status[http.StatusTooManyRequests] == 0 {
			t.Errorf("%s, stream %t: only %d spent, by status %v", e.name, stream, spent, rec.status)
		}
		for _, caddy := range caddys {
			caddy.kill()
		}
	}
}

// TestBudgetIsUsed: requests that spend half of what they reserve use at least
// 90 % of the budget, and no interval of the window holds more than the budget.
func TestBudgetIsUsed(t *testing.T) {
	const (
		limit   = 50_000
		window  = 4 * time.Second
		windows = 4
	)
	redis, backend := redistest.Start(t), llmtest.Start(t)
	site := budgeted{events: strconv.Itoa(limit), window: window.String(), upstream: backend.Addr}
	var caddys []*process
	for range 3 {
		caddys = append(caddys, site.start(t, redis))
	}
	var rec llmRecord
	began := time.Now()
	crowd(30, func(i int) {
		for n := 0; time.Since(began) < windows*window; n++ {
			e := llmEndpoints[i%2] // one zone
			request := e.request(1000, "stream", n%2 == 0)
			granted, wait := rec.ask(t, caddys[i%3].url(), e, 100_000*i+n, "output=500,every=5ms", request)
			if !granted {
				// Not all of it: who waits for the moment that was named comes
				// after whoever asks all the time.
				time.Sleep(min(wait, window/50))
			}
		}
	})
	ledger := backend.Since(0)
	if most, at := storetest.Most(rec.spans(ledger), window); most > limit {
		t.Errorf("%d spent within the %v from %v, budget %d", most, window, at, limit)
	}
	spent, _ := llmtest.Spent(ledger)
	share := float64(spent) / (limit * windows)
	t.Logf("%d requests of %d spent %d tokens in %d windows, %.1f %% of the budget", len(ledger), len(rec.sent), spent, windows, 100*share)
	if share < 0.9 {
		t.Errorf("%.1f %% of the budget used, want at least 90 %%", 100*share)
	}
}

// TestBudgetOfDollars: what is charged is what the ledger bills, to the
// micro-dollar.
func TestBudgetOfDollars(t *testing.T) {
	prices := map[string]llmtest.Price{
		"gpt-5":             {Input: "1.25", Cached: "0.125", Written: "1.5625", Output: "10"},
		"claude-sonnet-4-6": {Input: "3", Cached: "0.3", Written: "3.75", Written1h: "6", Output: "15"},
		"default":           {Input: "15.000001", Cached: "15.000001", Written: "18.750002", Written1h: "30.000002", Output: "120"},
	}
	redis, backend := redistest.Start(t), llmtest.Start(t, prices)
	caddy := budgeted{events: "$20", window: "1h", upstream: backend.Addr, prices: []string{
		"price gpt-5 input 1.25 cached 0.125 output 10", "price claude-sonnet-4-6 input 3 cached 0.3 output 15",
		"price default input 15.000001 output 120",
	}}.start(t, redis)
	for _, behaviour := range []string{
		"input=1,output=0,events=1", "input=3,output=7", "input=3,cached=11,output=33,reasoning=30", "input=1,cached=3,written=7,output=9",
		"input=5,output=1,answered=another", "output=1000000",
	} {
		for _, e := range llmEndpoints {
			for _, model := range []string{"", "unknown"} {
				for _, stream := range []bool{false, true} {
					request := e.request(100, "stream", stream)
					if model != "" {
						request["model"] = model
					}
					before, entries := charged(t, redis), len(backend.Ledger())
					resp, err := llmPost(t.Context(), caddy.url(), e.path, behaviour, request, caseHeader, "dollars")
					if err != nil {
						t.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					_, spent := llmtest.Spent(backend.Since(entries))
					got := chargedUntil(t, redis, func(units int64) bool { return units-before == spent }) - before
					if got != spent || spent == 0 {
						t.Errorf("%s, %s, %q, stream %t: charged %d, billed %d micro-dollars", e.name, model, behaviour, stream, got, spent)
					}
				}
			}
		}
	}
}
