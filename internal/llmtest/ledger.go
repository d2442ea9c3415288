package llmtest

import (
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Tokens are what a request has spent. No token is in two fields but those of
// Reasoning.
type Tokens struct {
	Input     int // from no cache, and not written to one
	Cached    int // read from a cache
	Written   int // written to a cache
	Written1h int // written to a cache for an hour
	Output    int // with Reasoning
	Reasoning int // part of Output
}

// Total is the number of tokens, of all kinds.
func (t Tokens) Total() int { return t.prompt() + t.Output }

func (t Tokens) prompt() int { return t.Input + t.Cached + t.Written + t.Written1h }

// Price is what tokens of a model cost, in dollars per million. Empty fields
// cost what Input costs.
type Price struct{ Input, Cached, Written, Written1h, Output string }

// Prices are the prices of some models.
var Prices = map[string]Price{
	"gpt-5":             {Input: "1.25", Cached: "0.125", Output: "10"},
	"gpt-5-pro":         {Input: "15", Output: "120"},
	"claude-sonnet-4-6": {Input: "3", Cached: "0.30", Written: "3.75", Written1h: "6", Output: "15"},
	"default":           {Input: "15", Written: "18.75", Written1h: "30", Output: "120"},
}

// Micro is what tokens cost, in millionths of a dollar and rounded up: dollars
// per million tokens are millionths of a dollar per token.
func (p Price) Micro(t Tokens) int64 {
	sum := new(big.Rat)
	for _, part := range []struct {
		tokens int
		price  string
	}{{t.Input, p.Input}, {t.Cached, p.Cached}, {t.Written, p.Written}, {t.Written1h, p.Written1h}, {t.Output, p.Output}} {
		if part.price == "" {
			part.price = p.Input
		}
		each, ok := new(big.Rat).SetString(part.price)
		if !ok {
			panic(fmt.Sprintf("llmtest: price %q", part.price))
		}
		sum.Add(sum, each.Mul(each, new(big.Rat).SetInt64(int64(part.tokens))))
	}
	up := new(big.Int).Add(sum.Num(), sum.Denom())
	up.Sub(up, big.NewInt(1))
	return up.Quo(up, sum.Denom()).Int64()
}

// Entry is one request in the ledger.
type Entry struct {
	Method, Path string
	Header       http.Header // of the request, as it arrived
	Body         []byte      // of the request, decoded
	Model        string      // that was asked for
	Answered     string      // that answered
	Stream       bool
	Status       int       // of the response, 0 if there was none
	Tokens       Tokens    // spent
	Told         bool      // the client was sent all of its usage
	HungUp       bool      // the client went away before the end
	Events       int       // of a stream, that were sent
	Began, Ended time.Time // Ended is zero while it goes on

	prices map[string]Price
}

// Micro is what the request costs, in millionths of a dollar.
func (e Entry) Micro() int64 {
	model := e.Answered
	if _, ok := e.prices[model]; !ok {
		model = "default"
	}
	return e.prices[model].Micro(e.Tokens)
}

// Attempt is which attempt of an official client the request is, 0 the first.
func (e Entry) Attempt() string { return e.Header.Get("X-Stainless-Retry-Count") }

func (s *Server) enter(r *http.Request, body []byte) *Entry {
	e := &Entry{
		Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone(), Body: body, Began: time.Now(), prices: s.prices,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ledger = append(s.ledger, e)
	return e
}

// note changes the entry of a request.
func (x *exchange) note(change func(e *Entry)) {
	x.server.mu.Lock()
	defer x.server.mu.Unlock()
	change(x.entry)
}

func (x *exchange) end() { x.note(func(e *Entry) { e.Ended = time.Now() }) }

// Ledger is a copy of all entries, in the order in which the requests arrived.
func (s *Server) Ledger() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	ledger := make([]Entry, len(s.ledger))
	for i, e := range s.ledger {
		ledger[i] = *e
	}
	return ledger
}

// Since is the ledger from its entry n on, when no request is on its way any
// more.
func (s *Server) Since(n int) []Entry {
	for {
		ledger := s.Ledger()
		if !slices.ContainsFunc(ledger, func(e Entry) bool { return e.Ended.IsZero() }) {
			return ledger[min(n, len(ledger)):]
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Spent is the sum of entries: all tokens, and millionths of dollars.
func Spent(entries []Entry) (tokens int, micro int64) {
	for _, e := range entries {
		tokens += e.Tokens.Total()
		micro += e.Micro()
	}
	return tokens, micro
}

// String tells of the entry in one line, for failures of tests.
func (e Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s stream=%t status=%d %+v micro=%d", e.Method, e.Path, e.Model, e.Stream, e.Status, e.Tokens, e.Micro())
	if e.HungUp {
		b.WriteString(" hung up")
	}
	return b.String()
}
