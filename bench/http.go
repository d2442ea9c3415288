package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// webResult is what a site does under full load: medians of the rounds.
type webResult struct {
	Server    string
	PerSecond float64
	// CPU is what the server process took for one request, in user and
	// system mode. The machine's other work hardly touches it, so it is
	// what to compare.
	CPU time.Duration
	// Ratio of the CPU of a round to that of the round of Baseline next to
	// it.
	Ratio     float64
	Low, High float64 // quartiles of the ratio
	Baseline  string
	Calls     float64 // of Redis's scripts for 1000 requests
	Rounds    int
}

// The names of sites, by which goals find them.
const (
	siteCaddy         = "Caddy"
	siteCaddyRedis    = "Caddy, this module on Redis"
	siteCaddyMemory   = "Caddy, this module in memory"
	siteExpress       = "Express"
	siteExpressLimits = "Express, " + nameExpress
)

// site is a server under load.
type site struct {
	name, baseline string
	*process
	samples []webSample
}

type webSample struct {
	perSecond, cpu, calls float64 // CPU in seconds
}

const connections = 64

func measureHTTP(r *rig, rep *report) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		wrk = ""
	}
	rep.Machine.Load = "a client in Go (there is no wrk in PATH)"
	if wrk != "" {
		rep.Machine.Load = "wrk"
	}

	sites := startSites(r, rep)
	loadSites(r, sites, wrk)
	for _, s := range sites {
		rep.Web = append(rep.Web, s.result(sites))
		s.kill()
	}
}

// startSites starts what is compared, as far as it can be had here.
func startSites(r *rig, rep *report) []*site {
	var sites []*site
	start := func(name, baseline string, start func() (*process, error)) {
		p, err := start()
		if err != nil {
			rep.missing("%s: %v", name, err)
			return
		}
		sites = append(sites, &site{name: name, baseline: baseline, process: p})
	}
	if program, err := r.buildCaddy(); err != nil {
		rep.missing("Caddy: %v", err)
	} else {
		rep.Machine.readCaddy(program)
		start(siteCaddy, siteCaddy, func() (*process, error) { return r.startCaddy(program, "") })
		start(siteCaddyRedis, siteCaddy, func() (*process, error) { return r.startCaddy(program, "redis redis://"+r.redis.Addr) })
		start(siteCaddyMemory, siteCaddy, func() (*process, error) { return r.startCaddy(program, "memory") })
	}
	start(siteExpress, siteExpress, func() (*process, error) { return r.startNode(map[string]string{"limit": "none"}) })
	start(siteExpressLimits, siteExpress, func() (*process, error) {
		return r.startNode(map[string]string{"limit": "redis", "events": itoa(plenty.limit), "window": "60000"})
	})
	rep.Machine.Versions = append(rep.Machine.Versions, r.nodeVersions()...)
	return sites
}

// loadSites puts load on the sites in turns.
func loadSites(r *rig, sites []*site, wrk string) {
	rounds := pick(r, 15, 1)
	for round := pick(r, 0, 1); round <= rounds; round++ {
		// Many short rounds: the machine is now faster, now slower, and what
		// is compared must run side by side. The first one warms up.
		const run = time.Second
		order := slices.Clone(sites)
		if round%2 == 1 {
			slices.Reverse(order) // who comes first differs
		}
		for _, s := range order {
			// Express is not what the goals are about; it gets every third round.
			if s.baseline == siteExpress && round%3 != 1 {
				continue
			}
			r.goOn()
			sample, err := s.load(r, wrk, run)
			if err != nil {
				r.Fatalf("%s: %v", s.name, err)
			}
			if round > 0 {
				s.samples = append(s.samples, sample)
			}
		}
		r.log("http: round %d of %d", round, rounds)
	}
}

func (s *site) result(sites []*site) webResult {
	var perSecond, cpu, calls, ratios []float64
	for i, sample := range s.samples {
		perSecond, cpu, calls = append(perSecond, sample.perSecond), append(cpu, sample.cpu), append(calls, sample.calls)
		for _, other := range sites {
			if other.name == s.baseline && i < len(other.samples) {
				ratios = append(ratios, sample.cpu/other.samples[i].cpu)
			}
		}
	}
	return webResult{
		Server: s.name, PerSecond: median(perSecond), CPU: time.Duration(median(cpu) * float64(time.Second)),
		Ratio: median(ratios), Low: quantile(ratios, 0.25), High: quantile(ratios, 0.75), Baseline: s.baseline, Calls: median(calls), Rounds: len(s.samples),
	}
}

// load puts a full load on the site.
func (s *site) load(r *rig, wrk string, run time.Duration) (webSample, error) {
	time.Sleep(100 * time.Millisecond) // what the last load has left under way
	r.resetCommands()
	busy, err := s.cpu()
	if err != nil {
		return webSample{}, err
	}
	began := time.Now()
	requests, err := int64(0), error(nil)
	if wrk != "" {
		requests, err = wrkLoad(wrk, s.url, run)
	} else {
		requests, err = goLoad(s.url, run)
	}
	if err != nil {
		return webSample{}, err
	}
	elapsed := time.Since(began)
	after, err := s.cpu()
	if err != nil {
		return webSample{}, err
	}
	if requests == 0 {
		return webSample{}, fmt.Errorf("no request was answered in %v", run)
	}
	stats := r.commandStats()
	return webSample{
		perSecond: float64(requests) / elapsed.Seconds(),
		cpu:       (after - busy).Seconds() / float64(requests),
		calls:     float64(stats["evalsha"].calls+stats["eval"].calls) / float64(requests) * 1000,
	}, nil
}

// cpu is what the process has used so far. Linux only.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The name of the program, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const utime, stime = 11, 12 // counted from the state, which is the first here
	if len(fields) <= stime {
		return 0, fmt.Errorf("%s of process %d", data, p.cmd.Process.Pid)
	}
	user, err := strconv.ParseInt(fields[utime], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[stime], 10, 64)
	const tick = time.Second / 100 // USER_HZ is 100 wherever Go runs
	return time.Duration(user+system) * tick, err
}

// wrkLoad has wrk load a site, and returns how many requests were answered.
func wrkLoad(wrk, url string, run time.Duration) (int64, error) {
	// wrk takes whole seconds.
	seconds := max(1, int(run.Round(time.Second).Seconds()))
	output, err := exec.Command(wrk, "-t1", "-c"+strconv.Itoa(connections), "-d"+strconv.Itoa(seconds)+"s", url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %v: %s", err, output)
	}
	requests := int64(0)
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, "Non-2xx") || strings.Contains(line, "Socket errors") {
			return 0, fmt.Errorf("wrk: %s", strings.TrimSpace(line))
		}
		if number, _, ok := strings.Cut(strings.TrimSpace(line), " requests in "); ok {
			requests, err = strconv.ParseInt(number, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("wrk: %v", err)
			}
		}
	}
	if requests > 0 {
		return requests, nil
	}
	return 0, fmt.Errorf("wrk tells no number of requests: %s", output)
}

// goLoad is for machines without wrk. It takes more of the machine.
func goLoad(url string, run time.Duration) (int64, error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var requests atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	end := time.Now().Add(run)
	for range connections {
		wg.Go(func() {
			for time.Now().Before(end) {
				response, err := client.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err == nil && response.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %s", response.Status)
					}
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				requests.Add(1)
			}
		})
	}
	wg.Wait()
	if p := failed.Load(); p != nil {
		return 0, *p
	}
	return requests.Load(), nil
}
