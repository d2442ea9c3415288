package caddytest

import (
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// NewTable stands for the one of docs/writing-a-store.md, which package storetest tests.
func NewTable() store.Store { return store.NewMemory(0) }

func init() { caddy.RegisterModule(new(TableStore)) }

// counts outlives each configuration: a reload forgets nothing.
var counts = NewTable()

// TableStore is the store as a module of Caddy.
type TableStore struct {
	store.Store `json:"-"`
}

// CaddyModule returns the Caddy module information.
func (*TableStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "distributed_ratelimit.stores.table",
		New: func() caddy.Module { return new(TableStore) },
	}
}

// Provision is where a store that has a server begins to connect to it.
func (s *TableStore) Provision(caddy.Context) error {
	s.Store = counts
	return nil
}

// UnmarshalCaddyfile reads: store table
func (s *TableStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // table
	if d.NextArg() {
		return d.ArgErr()
	}
	return nil
}

// The page on writing a store has the module above, to the letter, and it limits, over a
// reload too.
func TestPageHasTheModule(t *testing.T) {
	source, err := os.ReadFile("ownstore_test.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/writing-a-store.md")
	if err != nil {
		t.Fatal(err)
	}
	_, module, _ := strings.Cut(string(source), "\nfunc init")
	module, _, _ = strings.Cut(module, "\n// The page on writing a store")
	if len(module) < 500 || !strings.Contains(string(page), "```go\nfunc init"+module+"```\n") {
		t.Error("docs/writing-a-store.md differs from ownstore_test.go; copy it from func init to the end of UnmarshalCaddyfile")
	}

	site := func(more string) string {
		return "{\n\tdistributed_ratelimit {\n\t\tstore table\n\t}\n" + more + "}\n:80 {\n\tdistributed_ratelimit 3 1h\n\trespond ok\n}\n"
	}
	e := start(t, site(""))
	e.granted(3, "192.0.2.1", "http://localhost/")
	e.refused("192.0.2.1", "http://localhost/")
	e.reload(site("\tgrace_period 1s\n"))
	e.refused("192.0.2.1", "http://localhost/")
}
