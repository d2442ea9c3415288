// Package migration tests what docs/migrating.md says of other limiters, with the real
// ones: caddy-ratelimit from Go's module proxy, express-rate-limit, rate-limit-redis
// and @upstash/ratelimit from npm, nginx and HAProxy from Debian. It also runs the
// examples that move a service from one of them to this limiter, and has clients of
// theirs read this one's header fields. Traefik, from Go's module proxy, takes minutes to
// build: its tests have the build tag traefik, and make migration-traefik runs them.
//
// It is a module of its own, so that none of them gets into the go.mod file of those
// who use the limiter. make migration runs it.
package migration
