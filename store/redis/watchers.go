package redis

import (
	"context"
	"sync"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// watchers are told how the servers of a store fare.
type watchers struct {
	secrets  *secrets
	presence *presence

	mu      sync.Mutex
	reports map[string]store.Report // the last one on each server
	all     map[*func(store.Report)]struct{}
}

func newWatchers(s *secrets, p *presence) *watchers {
	return &watchers{
		secrets: s, presence: p,
		reports: make(map[string]store.Report), all: make(map[*func(store.Report)]struct{}),
	}
}

// add adds a watcher, see [store.Shared].
func (w *watchers) add(do func(store.Report)) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all[&do] = struct{}{}
	for _, r := range w.reports {
		do(r)
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, &do)
	}
}

// report tells how a server fares. After the end of ctx, which is the
// reporter's, it tells nothing: the server may have been removed.
func (w *watchers) report(ctx context.Context, name string, r store.Report) {
	r.Server, r.Instances = name, w.presence.instances()
	if r.Err != nil {
		r.Err = w.secrets.redacted(r.Err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	last, known := w.reports[name]
	if known && last.Condition == r.Condition && last.Instances == r.Instances && r.Lost == "" {
		return
	}
	for do := range w.all {
		(*do)(r)
	}
	r.Lost = "" // it is told once
	w.reports[name] = r
}

// remove tells that a server does not belong to the store any more.
func (w *watchers) remove(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.reports[name]; !known {
		return
	}
	delete(w.reports, name)
	for do := range w.all {
		(*do)(store.Report{Server: name, Condition: store.Removed, Instances: w.presence.instances()})
	}
}
