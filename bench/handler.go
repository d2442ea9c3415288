package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// handlerCost is what a directive adds to a request of Caddy, without the server
// around it: medians of rounds in which all sites are measured in turns.
type handlerCost struct {
	Directive     string
	Time          time.Duration // for a request, a site's without the directive subtracted
	Allocs, Bytes float64       // the same
}

// handlerSites are the sub-benchmarks of BenchmarkHandler, the one that others are
// compared with first.
var handlerSites = []struct{ name, directive string }{
	{"without", ""},
	{"set", directiveSet},
	{"memory", directiveLimit},
	{"zones", "this module, two zones"},
	{"always", "this module, headers with every response"},
}

// The names of directives, by which goals find them.
const (
	directiveSet   = "a directive that sets a variable"
	directiveLimit = "this module, one zone"
)

// measureHandler runs the module's own benchmark, because a load through a server
// cannot tell a microsecond from the noise.
func measureHandler(r *rig, rep *report) {
	r.goOn()
	binary := filepath.Join(r.dir, "handler.test")
	build := exec.CommandContext(r.ctx, "go", "test", "-c", "-o", binary, "./internal/caddytest")
	build.Dir = r.root
	if out, err := build.CombinedOutput(); err != nil {
		r.Fatalf("building the benchmark of the handler: %v\n%s", err, out)
	}
	samples := make(map[string][][3]float64)
	for range pick(r, 12, 1) {
		r.goOn()
		run := exec.CommandContext(r.ctx, binary, "-test.run=^$", "-test.bench=^BenchmarkHandler$", "-test.benchmem",
			"-test.benchtime="+pick(r, "200ms", "20ms"))
		run.Dir = filepath.Join(r.root, "internal", "caddytest")
		out, err := run.CombinedOutput()
		if err != nil {
			r.Fatalf("the benchmark of the handler: %v\n%s", err, out)
		}
		r.must(readBenchmark(string(out), samples))
	}
	middle := func(name string, column int) float64 {
		var values []float64
		for i, s := range samples[name] {
			// The round's own site without the directive: what else the machine does hits both.
			values = append(values, s[column]-samples[handlerSites[0].name][i][column])
		}
		return median(values)
	}
	for _, site := range handlerSites[1:] {
		if len(samples[site.name]) != len(samples[handlerSites[0].name]) || len(samples[site.name]) == 0 {
			r.Fatalf("the benchmark of the handler has no %q", site.name)
		}
		rep.Handler = append(rep.Handler, handlerCost{
			site.directive, time.Duration(middle(site.name, 0)), middle(site.name, 2), middle(site.name, 1),
		})
	}
}

// readBenchmark reads the lines of a benchmark with sub-benchmarks: nanoseconds,
// bytes and allocations for an operation.
func readBenchmark(out string, samples map[string][][3]float64) error {
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 8 || !strings.HasPrefix(fields[0], "BenchmarkHandler/") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "BenchmarkHandler/"), "-")
		var s [3]float64
		for i, at := range []int{2, 4, 6} {
			value, err := strconv.ParseFloat(fields[at], 64)
			if err != nil {
				return fmt.Errorf("in %q of the benchmark: %w", line, err)
			}
			s[i] = value
		}
		samples[name] = append(samples[name], s)
	}
	return nil
}

func (rep *report) handler(directive string) *handlerCost {
	for i := range rep.Handler {
		if h := &rep.Handler[i]; h.Directive == directive {
			return h
		}
	}
	return nil
}
