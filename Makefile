# What a developer needs. Everything here also runs on a fresh machine that
# has Go, git and make.

FUZZTIME ?= 10s
# Recipes read what comes from outside as variables of the shell. As variables of make they
# would be run: a tag may be named v1.2.3-$(command).
export FUZZTIME VERSION

.PHONY: help run build platforms test test-portable cover soak lint smoke fuzz migration migration-traefik bench image compose release clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

run: build ## build Caddy with the plugin and serve Caddyfile.example on port 8080
	bin/caddy run --config Caddyfile.example

build: ## build Caddy with the plugin to bin/caddy
	go build -o bin/caddy ./cmd/caddy

platforms: ## compile the plugin and all tests for each platform that releases are built for
	scripts/platforms

test: ## run all tests with the race detector; installs redis-server and prometheus on Debian and Ubuntu
	scripts/test-needs
	go test -race -timeout 30m ./...

test-portable: ## run the tests that start no Redis, without the race detector
	scripts/test-portable

# What a package's own tests do not reach, tests of another package may.
cover: ## run all tests and write coverage of all packages to cover.out
	scripts/test-needs
	go test -timeout 15m -coverpkg=./... -coverprofile=cover.out ./...
	go tool cover -func=cover.out | tail -n 1

soak: ## what takes too long for each change: floods, evictions, all faults five times, other versions of Redis; about an hour
	scripts/test-needs
	go test -tags soak -v -run 'TestEvictionPolicies|TestMemoryOfKeys' ./store/redis
	go test -v -timeout 30m -run TestFaultManyClients ./internal/e2e -clients 1000000
	go test -v -timeout 30m -run TestReplayLargeLog . -replay-bytes 1073741824
	LEASE_SCHEDULES=5000 go test -timeout 60m -run 'TestLease' ./store/lease
	go test -race -v -timeout 60m -count 5 -run 'TestFaults$$' ./internal/e2e
	scripts/redis-versions

lint: ## check format, code, go.mod files, who imports what, scripts, workflows, links, the Dockerfile and manifests
	scripts/lint

smoke: ## build Caddy with xcaddy as the README and the Dockerfile say, and use it
	scripts/xcaddy
	scripts/image-steps

fuzz: ## fuzz each target for FUZZTIME, 10s unless told otherwise
	scripts/fuzz "$$FUZZTIME"

migration: ## test what docs/migrating.md says of other limiters; installs nginx and haproxy on Debian, wants node and npm
	scripts/test-needs nginx haproxy
	go -C migration test -timeout 10m ./...

# Its modules and packages take too long for .ci/run.
migration-traefik: ## the same of Traefik, which it builds once: some ten minutes on two cores
	scripts/test-needs
	scripts/traefik bin/traefik
	TRAEFIK=$(CURDIR)/bin/traefik go -C migration test -timeout 10m -tags traefik -run Traefik ./...

bench: ## compare with other limiters and write docs/benchmarks.md; wants redis-server, wrk, node and npm
	cd bench && go run .
	go run ./internal/worstwindow

image: ## build the container image, with the checks of docker build; wants Docker
	docker build --check .
	docker build --tag caddy-distributed-ratelimit .

compose: ## start examples/compose and count what its one port grants; wants Docker
	scripts/compose-try

release: ## build archives for all platforms into dist; wants VERSION=v1.2.3
	scripts/release "$$VERSION"

clean: ## remove what was built
	rm -rf bin caddy cover.out dist
