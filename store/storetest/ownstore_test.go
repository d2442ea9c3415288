package storetest_test

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/storetest"
)

// Table is a store in a map. Unlike store.Memory it never forgets a key, so a stranger
// who invents clients fills the memory: it is here to be read.
type Table struct {
	mu    sync.Mutex
	logs  map[store.Key]*store.Window
	start time.Time
}

func NewTable() *Table {
	return &Table{logs: make(map[store.Key]*store.Window), start: time.Now()}
}

func (t *Table) String() string { return "table" }

// now is the store's clock in microseconds. It does not follow the machine's when that
// is set.
func (t *Table) now() int64 { return t.start.UnixMicro() + time.Since(t.start).Microseconds() }

// open returns the log of a key, as it is now.
func (t *Table) open(now int64, key store.Key) *store.Window {
	log := t.logs[key]
	if log == nil {
		log = new(store.Window)
		t.logs[key] = log
	}
	log.Advance(now, key.Window)
	return log
}

// Take decides all requests under one lock, at one moment.
func (t *Table) Take(_ time.Time, _ time.Duration, requests []store.Request, decisions []store.Decision) error {
	if err := store.Validate(requests, decisions); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for i := range requests {
		log := t.open(now, requests[i].Key)
		log.CountUnreported(now, &requests[i])
		decisions[i] = log.Check(now, &requests[i])
		log.Ban(now, &requests[i], &decisions[i])
	}
	if !store.Granted(requests, decisions) {
		return nil // nothing is charged
	}
	for i := range requests {
		if decisions[i].Granted { // a shadow request may be refused
			t.logs[requests[i].Key].Charge(now, &requests[i], &decisions[i])
		}
	}
	return nil
}

// Refund gives units back to the charge that they came from.
func (t *Table) Refund(_ time.Duration, refunds []store.Refund) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for i := range refunds {
		t.open(now, refunds[i].Key).Refund(now, &refunds[i])
	}
	return nil
}

func TestTable(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return NewTable() })
}

func TestTableShared(t *testing.T) {
	table := NewTable()
	storetest.RunShared(t, func(*testing.T) store.Store { return table })
}

// The page on writing a store has the store above, to the letter.
func TestPageHasTheTable(t *testing.T) {
	source, err := os.ReadFile("ownstore_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/writing-a-store.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(source), "\n)\n\n")
	table, _, _ = strings.Cut(table, "\n// The page on writing a store")
	if len(table) < 1000 || !strings.Contains(string(page), "```go\n"+table+"```\n") {
		t.Error("docs/writing-a-store.md differs from ownstore_test.go; copy it from \"// Table\" to the end of TestTableShared")
	}
}
