package e2e

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// budgeted is a site with a budget for each API, kept by the case that a request
// names.
type budgeted struct {
	events   string // 50000, $20
	window   string
	prices   []string // of both APIs, in the words of the Caddyfile; none: tokens
	usage    []string // more lines of usage
	proxy    []string // lines of the proxy
	upstream string   // host and port
	servers  []string // lines of the store, instead of one Redis
}

const budgetedSite = `{
	admin ADMIN
	metrics
	distributed_ratelimit {
		store redis STORE
		budget 30s
	}
}
ADDR {
	@anthropic path /v1/messages /v1/messages/*
	@openai not path /v1/messages /v1/messages/*
	route {
		distributed_ratelimit {
			zone openai {
				match @openai
				key {http.request.header.LLM-Case}
				on_empty_key deny
				events EVENTS
				window WINDOW
				usage openai {
					USAGE
					max_output 4096 max_completion_tokens
				}
			}
			zone anthropic {
				match @anthropic
				key {http.request.header.LLM-Case}
				on_empty_key deny
				events EVENTS
				window WINDOW
				usage anthropic {
					USAGE
					max_output 4096
				}
			}
		}
		reverse_proxy UPSTREAM {
			PROXY
		}
	}
}
`

func (b budgeted) caddyfile() string {
	store := "{env.REDIS_URL} {\n\t\t\tdial_timeout 20s\n\t\t}"
	if len(b.servers) > 0 {
		store = "{\n\t\t\t" + strings.Join(b.servers, "\n\t\t\t") + "\n\t\t}"
	}
	return strings.NewReplacer(
		"STORE", store, "EVENTS", b.events, "WINDOW", b.window, "UPSTREAM", b.upstream,
		"USAGE", strings.Join(append(b.prices, b.usage...), "\n\t\t\t\t\t"), "PROXY", strings.Join(b.proxy, "\n\t\t\t"),
	).Replace(budgetedSite)
}

// start starts a Caddy with the site.
func (b budgeted) start(t *testing.T, redis *redistest.Server) *process {
	t.Helper()
	return startProcess(t, b.caddyfile(), redisEnv(redis))
}

func (p *process) url() string { return "http://" + p.addr }

// charged is the number of units that all logs hold: the six bytes behind a
// log's mark.
func charged(t *testing.T, redis *redistest.Server) (units int64) {
	t.Helper()
	for _, key := range logKeys(t, redis) {
		text, ok := redis.Do(t, "get", key).(string)
		if !ok || len(text) < 13 {
			continue // gone meanwhile
		}
		units += int64(binary.BigEndian.Uint64([]byte("\x00\x00" + text[7:13])))
	}
	return units
}

// chargedUntil waits until the units charged are what is wanted, as a
// settlement follows its response; after a while it returns what they are.
func chargedUntil(t *testing.T, redis *redistest.Server, want func(units int64) bool) (units int64) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		units = charged(t, redis)
		if want(units) || time.Now().After(deadline) {
			return units
		}
	}
}
