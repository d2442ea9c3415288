package distributedratelimit

import (
	"slices"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/stores"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/fallback"
)

// usedStore is a store of the running configuration: all backends of the same data.
type usedStore struct {
	name     string
	backends []*backend
	zones    []*usedZone
}

// adminStores answers GET stores.
func adminStores(c *adminCall) (any, error) {
	app, err := c.running()
	if err != nil {
		return nil, err
	}
	answers := []storeAnswer{}
	for _, s := range app.usedStores() {
		answers = append(answers, s.answer(time.Now()))
	}
	return answers, nil
}

// usedStores lists the stores of the configuration.
func (a *App) usedStores() []*usedStore {
	zones := a.usedZones()
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []*usedStore
	byName := make(map[string]*usedStore)
	for _, b := range a.backends {
		s := byName[b.name]
		if s == nil {
			s = &usedStore{name: b.name}
			byName[b.name] = s
			list = append(list, s)
		}
		s.backends = append(s.backends, b)
	}
	for _, z := range zones {
		if s := byName[z.store]; s != nil {
			s.zones = append(s.zones, z)
		}
	}
	return list
}

// answer tells what is known of the store. It asks no server.
func (s *usedStore) answer(now time.Time) storeAnswer {
	first := s.backends[0] // they share what is known of the servers
	stats := first.Stats()
	answer := storeAnswer{
		Name: s.name, Servers: serverAnswers(&stats), Instances: first.Guard.Instances(),
		Unreported: unreportedAnswer{Keys: stats.Unreported, Units: stats.UnreportedUnits, Refunds: stats.Owed},
		LocalKeys:  stats.Keys,
		Local:      momentOf(stats.Local), Allowed: momentOf(stats.Allowed), Lost: momentOf(stats.Lost),
		InFlight: first.lasting.slots.Stats().Held,
		AtMost:   multipleOf(s.atMost(&stats, now)),
	}
	answer.Condition = conditionOf(stats.Servers)
	s.addHeld(&answer)
	return answer
}

func serverAnswers(stats *fallback.Stats) []serverAnswer {
	servers := []serverAnswer{}
	for i := range stats.Servers {
		of := &stats.Servers[i]
		server := serverAnswer{
			Server: of.Server, Condition: of.Condition.String(), Since: momentOf(of.Since),
			Losses: of.Losses, Lost: momentOf(of.Lost), How: of.How,
		}
		switch {
		case of.Condition == store.Slow:
			server.Took, server.Budget = seconds(of.Took), seconds(of.Wait)
		case of.Condition == store.Away && of.Err != nil:
			server.Error = of.Err.Error()
		}
		servers = append(servers, server)
	}
	return servers
}

// conditionOf is how a store fares whose servers fare like this: as all of them, or
// partly.
func conditionOf(servers []fallback.ServerStats) string {
	if len(servers) == 0 {
		return store.Unknown.String()
	}
	for i := range servers {
		if servers[i].Condition != servers[0].Condition {
			return "partly"
		}
	}
	return servers[0].Condition.String()
}

// atMost is the largest multiple of its limit that one key of some zone may be granted.
func (s *usedStore) atMost(stats *fallback.Stats, now time.Time) float64 {
	most := 1.0
	for _, z := range s.zones {
		most = max(most, z.atMostBy(stats, now))
	}
	return most
}

// addHeld adds what only stores of a kind have.
func (s *usedStore) addHeld(answer *storeAnswer) {
	var seen []*stores.Redis // handlers may share one
	for _, b := range s.backends {
		switch of := b.store.(type) {
		case *stores.Memory:
			answer.Condition = store.Up.String() // it is this process
			answer.Memory = new(memoryAnswer)
			answer.Memory.Keys, answer.Memory.MaxKeys = of.Held()
		case *stores.Redis:
			if slices.ContainsFunc(seen, of.Same) {
				continue
			}
			seen = append(seen, of)
			answer.RoundTrip = max(answer.RoundTrip, seconds(of.RoundTrip()))
			held, ok := of.LeaseStats()
			if !ok {
				continue
			}
			if answer.Leases == nil {
				answer.Leases = new(leasesAnswer)
			}
			answer.Leases.Keys += held.Keys
			answer.Leases.Leased += held.Leased
			answer.Leases.Units += held.Units
			answer.Leases.Refusals += held.Refusals
		}
	}
}
