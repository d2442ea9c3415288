package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// A login of an application behind three Caddys on one Redis: failed ones count for
// the account, and too many of them ban it.

// application checks passwords. It holds the answers to some until it is told.
type application struct {
	*httptest.Server
	asked   atomic.Int64 // passwords that were checked
	waiting atomic.Int64 // of them, not answered yet
	left    atomic.Int64 // whose client hung up
	answer  chan struct{}
}

func startApplication(t *testing.T) *application {
	t.Helper()
	a := &application{answer: make(chan struct{})}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		password := r.PostFormValue("password")
		a.asked.Add(1)
		if strings.HasPrefix(password, "slow ") {
			a.waiting.Add(1)
			select {
			case <-a.answer:
			case <-r.Context().Done():
				a.left.Add(1)
			}
			a.waiting.Add(-1)
		}
		if !strings.HasSuffix(password, "right") {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(a.Close)
	return a
}

// loginEdges starts three Caddys in front of an application.
func loginEdges(t *testing.T, a *application, window, ban string) []*process {
	t.Helper()
	redis := redistest.Start(t)
	config := fmt.Sprintf(`{
	admin ADMIN
	distributed_ratelimit {
		store redis redis://%s {
			dial_timeout 20s
		}
		budget 30s
	}
}
ADDR {
	distributed_ratelimit {
		zone account {
			match path /login
			key {form.user}
			events 5
			window %s
			count_if status 401
			block_for %s
		}
	}
	reverse_proxy %s
}
`, redis.Addr, window, ban, a.Listener.Addr())
	var edges []*process
	for range 3 {
		edges = append(edges, startProcess(t, config))
	}
	return edges
}

// login sends a password, and returns the status, 0 for none, and Retry-After.
func (p *process) login(ctx context.Context, user, password string) (status, retryAfter int) {
	form := url.Values{"user": {user}, "password": {password}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.addr+"/login", strings.NewReader(form.Encode()))
	if err != nil {
		panic(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := p.client.Do(r)
	if err != nil {
		return 0, 0
	}
	resp.Body.Close()
	retryAfter, _ = strconv.Atoi(resp.Header.Get("Retry-After"))
	return resp.StatusCode, retryAfter
}

// A user who logs in again and again, on whatever instance, is never refused, nor
// are six at once banned.
func TestLoginsThatSucceedAreFree(t *testing.T) {
	a := startApplication(t)
	edges := loginEdges(t, a, "15m", "10m")
	ctx := context.Background()
	for i := range 1000 {
		if status, _ := edges[i%3].login(ctx, "alice", "right"); status != http.StatusOK {
			t.Fatalf("login %d of 1000, one after another: got status %d, want 200", i+1, status)
		}
	}

	var done sync.WaitGroup
	var welcome atomic.Int64
	for i := range 5 {
		done.Go(func() {
			if status, _ := edges[i%3].login(ctx, "bob", "slow right"); status == http.StatusOK {
				welcome.Add(1)
			}
		})
	}
	within(t, time.Minute, "five logins at the application", func() bool { return a.waiting.Load() == 5 })
	if status, _ := edges[2].login(ctx, "bob", "right"); status != http.StatusTooManyRequests {
		t.Errorf("a sixth login while five are pending: got status %d, want 429", status)
	}
	close(a.answer)
	done.Wait()
	if welcome.Load() != 5 {
		t.Errorf("%d of the five pending logins succeeded", welcome.Load())
	}
	for i, p := range edges {
		if status, _ := p.login(ctx, " BOB ", "right"); status != http.StatusOK {
			t.Errorf("instance %d, after the logins: got status %d, want 200: nobody is banned", i, status)
		}
	}
}

// Of 200 parallel guesses over three instances five are tried, though half of the
// guessers hang up. Then the account is banned everywhere, also after a restart.
func TestGuessesBanAnAccount(t *testing.T) {
	a := startApplication(t)
	edges := loginEdges(t, a, "15m", "10m")
	const guesses, limit = 200, 5
	hangUp, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stay, leave sync.WaitGroup
	var refused, failed, hung atomic.Int64
	for i := range guesses {
		ctx, done := context.Background(), &stay
		if i%2 == 0 {
			ctx, done = hangUp, &leave
		}
		done.Go(func() {
			switch status, _ := edges[i%3].login(ctx, "alice", fmt.Sprintf("slow guess %d", i)); status {
			case http.StatusTooManyRequests:
				refused.Add(1)
			case http.StatusUnauthorized:
				failed.Add(1)
			case 0:
				hung.Add(1)
			}
		})
	}
	within(t, time.Minute, "all guesses but five refused", func() bool { return refused.Load() == guesses-limit })
	within(t, time.Minute, "five guesses at the application", func() bool { return a.waiting.Load() == limit })
	cancel()
	leave.Wait()
	within(t, time.Minute, "the application notices who has left", func() bool { return a.left.Load() == hung.Load() })
	close(a.answer) // for those who stay
	stay.Wait()
	within(t, time.Minute, "no guess at the application", func() bool { return a.waiting.Load() == 0 })
	if failed.Load()+hung.Load() != limit {
		t.Errorf("%d guesses were answered, %d hung up before; want %d together", failed.Load(), hung.Load(), limit)
	}

	banned := func(when string) {
		t.Helper()
		for i, p := range edges {
			status, retryAfter := p.login(context.Background(), "Alice", "right")
			if status != http.StatusTooManyRequests || retryAfter < 500 || retryAfter > 900 {
				t.Errorf("%s, instance %d: got status %d, Retry-After %d; want 429 and 10 to 15 minutes", when, i, status, retryAfter)
			}
			if status, _ := p.login(context.Background(), "carol", "right"); status != http.StatusOK {
				t.Errorf("%s, instance %d: another account got status %d, want 200", when, i, status)
			}
		}
	}
	banned("after the guesses")
	for _, p := range edges {
		p.kill()
	}
	for _, p := range edges {
		p.start(t)
	}
	banned("after a restart of all")
	if asked := a.asked.Load() - 6; asked != limit { // without those of carol
		t.Errorf("%d of alice's passwords were tried, want %d", asked, limit)
	}
}

// Whoever hangs up before the answer has used up a guess.
func TestGuessersWhoHangUpAreCounted(t *testing.T) {
	a := startApplication(t)
	edges := loginEdges(t, a, "15m", "10m")
	for i := range 5 {
		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan struct{})
		go func() {
			edges[i%3].login(ctx, "alice", "slow guess")
			close(gone)
		}()
		within(t, time.Minute, "a guess at the application", func() bool { return a.waiting.Load() == 1 })
		cancel()
		<-gone
		within(t, time.Minute, "nobody at the application", func() bool { return a.waiting.Load() == 0 })
	}
	for i, p := range edges {
		if status, _ := p.login(context.Background(), "alice", "right"); status != http.StatusTooManyRequests {
			t.Errorf("instance %d, after five guessers hung up: got status %d, want 429", i, status)
		}
	}
	if a.asked.Load() != 5 || a.left.Load() != 5 {
		t.Errorf("%d guesses, %d hung up; want 5 and 5", a.asked.Load(), a.left.Load())
	}
}

// A ban ends when Retry-After said, however much the client hammers, and the first
// request after it is not the start of another one.
func TestBansEndWhenTheySaid(t *testing.T) {
	for _, row := range []struct{ window, ban string }{{"2s", "6s"}, {"6s", "2s"}} {
		t.Run("window "+row.window+", ban "+row.ban, func(t *testing.T) {
			a := startApplication(t)
			edges := loginEdges(t, a, row.window, row.ban)
			ctx := context.Background()
			user, began, status, retryAfter := "", time.Time{}, 0, 0
			for n := 0; status != http.StatusTooManyRequests; n++ {
				// A slow machine may take a window for five guesses: try again.
				user, began = fmt.Sprintf("alice-%d", n), time.Now()
				for i := range 5 {
					edges[i%3].login(ctx, user, "wrong")
				}
				status, retryAfter = edges[2].login(ctx, user, "wrong")
			}
			end := time.Now().Add(time.Duration(retryAfter) * time.Second)
			for i := 0; time.Now().Before(end); i++ {
				sent := time.Now()
				status, _ := edges[i%3].login(ctx, user, "right")
				switch {
				case status == http.StatusTooManyRequests:
				case status == http.StatusOK && time.Since(began) > 5*time.Second:
					// Retry-After is in whole seconds, rounded up.
					if early := end.Sub(sent); early > 1500*time.Millisecond {
						t.Errorf("granted %v before what Retry-After said", early)
					}
				default:
					t.Fatalf("after %v, during the ban: got status %d", sent.Sub(began), status)
				}
				time.Sleep(50 * time.Millisecond)
			}
			for i, p := range edges {
				if status, again := p.login(ctx, user, "right"); status != http.StatusOK {
					t.Errorf("instance %d, %v after the ban's end: got status %d, Retry-After %d; want 200", i, time.Since(end), status, again)
				}
			}
		})
	}
}
