package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/lease"
)

// instancesPoint is several instances, each with leases and connections of
// its own, on one hot key.
type instancesPoint struct {
	Instances      int
	Leases, Direct float64 // decisions a second, of all together
	Calls          float64 // of the store for 1000 decisions, leases on
}

// keysPoint is keys that all have a log already, asked for at random.
type keysPoint struct {
	Keys                   int
	Leases, Direct, Memory float64 // decisions a second
	RedisBytes             float64 // for one key, of the server's memory; 0 with too few to tell
}

// limitPoint is one hot key under a limit.
type limitPoint struct {
	Limit     int64
	PerSecond float64 // decisions, granted or not
	Granted   float64 // share
	FullBytes int64   // of the key in Redis, with a log that cannot have more entries
}

// keyBytes is what a key takes in Redis.
type keyBytes struct {
	Subject string
	Bytes   int64 // after one decision
}

// growth is how cost grows.
type growth struct {
	Instances []instancesPoint
	Keys      []keysPoint
	Limits    []limitPoint
	Bytes     []keyBytes
	// Bytes of this process's heap for one key.
	MemoryKey, LeaseKey float64
	MemoryKeys          int // that were held to find out
}

func measureGrowth(r *rig, rep *report) {
	g := &rep.Growth
	for _, n := range []int{1, 2, 4, 8} {
		r.log("growth: %d instances", n)
		g.Instances = append(g.Instances, growInstances(r, n))
	}
	growKeys(r, g)
	r.log("growth: limits")
	g.Limits = growLimits(r)
	for _, s := range sharedSubjects() {
		if s.name == nameLeases {
			continue // the same log as without
		}
		g.Bytes = append(g.Bytes, keyBytes{s.name, bytesOfOne(r, s)})
	}
}

const growthWarm = 200 * time.Millisecond

func growthLoad(r *rig, keys func(worker int) func() string) load {
	return load{workers: callers, warm: growthWarm, run: pick(r, 600*time.Millisecond, 150*time.Millisecond), keys: keys}
}

func growInstances(r *rig, n int) instancesPoint {
	r.goOn()
	r.empty()
	inner := make([]*counted, n)
	leases, direct := make([]limiter, n), make([]limiter, n)
	for i := range n {
		var err error
		leases[i], err = openLeases(r.redis.Addr, plenty, func(s store.Store) store.Store {
			inner[i] = &counted{Store: s}
			return inner[i]
		})
		r.must(err)
		defer leases[i].close()
		direct[i], err = openDirect(r.redis.Addr, plenty)
		r.must(err)
		defer direct[i].close()
	}
	drive(leases, growthLoad(r, oneKey)) // warm: the calls of the beginning are not counted
	for _, c := range inner {
		c.reset()
	}
	s := drive(leases, growthLoad(r, oneKey))
	calls := int64(0)
	for _, c := range inner {
		calls += c.calls()
	}
	// The decisions of the warm phase are calls too, but not counted.
	share := float64(s.elapsed) / float64(s.elapsed+growthWarm)
	p := instancesPoint{Instances: n, Leases: s.perSecond(), Calls: float64(calls) * share / float64(s.decisions) * 1000}
	s = drive(direct, growthLoad(r, oneKey))
	p.Direct = s.perSecond()
	return p
}

// growKeys goes through growing numbers of keys. The stores keep those of
// before, so that each key is filled in once.
func growKeys(r *rig, g *growth) {
	most := pick(r, 1_000_000, 10_000)
	names := make([]string, most)
	for i := range names {
		names[i] = "client-" + strconv.Itoa(i)
	}
	r.empty()
	heap := liveHeap()
	memory, err := openMemory("", plenty)
	r.must(err)
	fillKeys(r, memory, names)
	g.MemoryKey, g.MemoryKeys = float64(liveHeap()-heap)/float64(most), most

	heap = liveHeap()
	leases, err := openLeases(r.redis.Addr, plenty, nil)
	r.must(err)
	defer leases.close()
	direct, err := openDirect(r.redis.Addr, plenty)
	r.must(err)
	defer direct.close()
	used, filled := r.redisMemory(), 0
	for n := 1; n <= most; n *= 10 {
		r.goOn()
		r.log("growth: %d keys", n)
		fillKeys(r, leases, names[filled:n])
		filled = n
		p := keysPoint{Keys: n}
		if n >= 1000 {
			p.RedisBytes = float64(r.redisMemory()-used) / float64(n)
		}
		if table := min(n, lease.DefaultMaxKeys); n == most && table > 1000 {
			g.LeaseKey = float64(liveHeap()-heap) / float64(table)
		}
		// A lease grows to the demand of a span of half a second.
		random := growthLoad(r, func(int) func() string {
			return func() string { return names[rand.IntN(n)] }
		})
		random.warm = pick(r, time.Second, random.warm)
		var speeds [3][]float64
		for range pick(r, 3, 1) {
			for i, lim := range []limiter{leases, direct, memory} {
				s := drive([]limiter{lim}, random)
				speeds[i] = append(speeds[i], s.perSecond())
			}
		}
		p.Leases, p.Direct, p.Memory = median(speeds[0]), median(speeds[1]), median(speeds[2])
		g.Keys = append(g.Keys, p)
	}
	runtime.KeepAlive(names)
}

// fillKeys has a decision made for each key.
func fillKeys(r *rig, lim limiter, names []string) {
	const workers = 256
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			decide := lim.session()
			for i := w; i < len(names); i += workers {
				if _, err := decide(names[i]); err != nil {
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		r.must(err)
	}
}

// liveHeap is what this process's heap holds.
func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and pools held on to
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// redisMemory is what the server's data take.
func (r *rig) redisMemory() int64 {
	stats, ok := r.do("MEMORY", "STATS").([]any)
	for i := 0; ok && i+1 < len(stats); i += 2 {
		if stats[i] == "dataset.bytes" {
			n, _ := stats[i+1].(int64)
			return n
		}
	}
	r.Fatalf("MEMORY STATS tells no dataset.bytes")
	return 0
}

// keyMemory is what the keys of a pattern take.
func (r *rig) keyMemory(pattern string) (sum int64) {
	keys, _ := r.do("KEYS", pattern).([]any)
	for _, key := range keys {
		// All of a string is looked at, whatever the number of samples.
		n, _ := r.do("MEMORY", "USAGE", key).(int64)
		sum += n
	}
	return sum
}

func growLimits(r *rig) (points []limitPoint) {
	limits := pick(r, []int64{10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000}, []int64{10, 1000, 10_000_000})
	r.empty()
	bytes := fullLogs(r, limits)
	for i, limit := range limits {
		r.goOn()
		lim, err := openLeases(r.redis.Addr, quota{limit, time.Minute}, nil)
		r.must(err)
		s := drive([]limiter{lim}, growthLoad(r, oneKey))
		lim.close()
		r.empty()
		points = append(points, limitPoint{limit, s.perSecond(), float64(s.granted) / float64(s.decisions), bytes[i]})
	}
	return points
}

// fullLogs charges a log for each limit in as many steps as it has entries,
// and returns the memory that each takes in the server.
func fullLogs(r *rig, limits []int64) []int64 {
	const window = time.Second
	const parts = 64
	lim, err := openDirect(r.redis.Addr, quota{1, window})
	r.must(err)
	defer lim.close()
	ours, ok := lim.(*ours)
	if !ok {
		r.Fatalf("a %T", lim)
	}
	step := window/parts + time.Millisecond
	for began := time.Now(); time.Since(began) < window; time.Sleep(step) {
		for _, limit := range limits {
			// A call for each limit: one key is one Cluster slot.
			requests := []store.Request{{Key: store.Key{Zone: fmt.Sprint("limit", limit), Client: "client", Window: window},
				Limit: limit, Units: max(1, limit/parts)}}
			r.must(ours.store.Take(time.Now(), patience, requests, make([]store.Decision, 1)))
		}
	}
	bytes := make([]int64, len(limits))
	for i, limit := range limits {
		bytes[i] = r.keyMemory(fmt.Sprintf("*:limit%d:*", limit))
	}
	return bytes
}

// bytesOfOne is what a key takes after one decision, with all that belongs to
// it.
func bytesOfOne(r *rig, s subject) int64 {
	r.empty()
	lim, err := s.open(r.redis.Addr, quota{1000, time.Minute})
	r.must(err)
	defer lim.close()
	_, err = lim.session()(oneKey(0)())
	r.must(err)
	return r.keyMemory("*")
}
