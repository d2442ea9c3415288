//go:build unix

package distributedratelimit

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/logtest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
)

// BenchmarkReplay replays a log as the command does, with the manual's limits and with a
// site of many routes. What counts is cpu-ns/line: the processor's time for each line of
// all goroutines together, which a busy machine hardly changes.
func BenchmarkReplay(b *testing.B) {
	var log bytes.Buffer
	const lines = 200_000
	if _, err := logtest.Write(&log, logtest.Options{Seed: 1, Requests: lines}); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	name := filepath.Join(dir, "access.log")
	if err := os.WriteFile(name, log.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	page, err := os.ReadFile("docs/replay.md")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```caddyfile\n")
	manual, _, _ := strings.Cut(rest, "```\n")
	const routes = `example.com {
	handle /api/* {
		distributed_ratelimit 100 1m
		reverse_proxy localhost:1
	}
	handle_path /static/* {
		file_server
	}
	handle {
		@scripts path *.php
		respond @scripts 404
		distributed_ratelimit {
			zone agents {
				key {header.User-Agent}
				events 1000
				window 1m
			}
			zone pages {
				events 100
				window 1m
				exempt header X-Probe yes
			}
		}
		reverse_proxy localhost:1
	}
}
`
	windows := []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour}
	for _, tt := range []struct {
		name, caddyfile string
		windows         []time.Duration
	}{{"manual", manual, nil}, {"suggest", manual, windows}, {"routes", routes, nil}} {
		b.Run(tt.name, func(b *testing.B) {
			file := filepath.Join(dir, "Caddyfile")
			if err := os.WriteFile(file, []byte(tt.caddyfile), 0o600); err != nil {
				b.Fatal(err)
			}
			c, err := readReplayConfig(file, "")
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			before := processorTime(b)
			for range b.N {
				e, err := newReplayEvaluator(c, "")
				if err != nil {
					b.Fatal(err)
				}
				r, err := replay.Run(e, replay.Options{Files: []string{name}, Windows: tt.windows})
				if err != nil || r.Requests != lines {
					b.Fatal(r, err)
				}
			}
			spent := processorTime(b) - before
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N)/lines, "cpu-ns/line")
			b.ReportMetric(float64(b.N)*lines/spent.Seconds(), "lines/core-s")
		})
	}
}

// processorTime is how long the process has used the processors.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
