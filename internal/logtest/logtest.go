// Package logtest makes access logs as Caddy writes them, of traffic such as sites have:
// a few clients send most requests, days are busier than nights, bots come at regular
// times, a crawler goes through everything, and somebody tries passwords from many
// addresses of some networks. The same seed makes the same log, on any machine.
package logtest

import (
	"bufio"
	"container/heap"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"time"
)

// Options are what a log is made of. The zero value of a field stands for its default.
type Options struct {
	Seed uint64
	// Requests and Bytes bound the log, whichever is reached first; 0 does not.
	Requests, Bytes int64
	// Clients is how many visitors there are. Default: 20,000.
	Clients int
	// Start is when the log begins. Default: 2 March 2026, midnight UTC.
	Start time.Time
	// Rate is how many requests come in a second in the mean. Default: 15.
	Rate float64
	// Common writes the combined format instead of JSON.
	Common bool
	// Host is the site's. Default: example.com.
	Host string
}

// Write writes a log, and returns how many requests are in it.
func Write(to io.Writer, o Options) (int64, error) {
	if o.Clients == 0 {
		o.Clients = 20_000
	}
	if o.Start.IsZero() {
		o.Start = time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC)
	}
	if o.Rate == 0 {
		o.Rate = 15
	}
	if o.Host == "" {
		o.Host = "example.com"
	}
	g := &generator{Options: o, random: rand.New(rand.NewPCG(o.Seed, 0x10c)), to: bufio.NewWriterSize(to, 1<<20)}
	g.zipf = rand.NewZipf(g.random, 1.15, 8, uint64(o.Clients-1))
	g.run()
	if err := g.to.Flush(); g.err == nil {
		g.err = err
	}
	return g.written, g.err
}

// request is one that has not been written yet.
type request struct {
	end          time.Duration // since the log began
	took         time.Duration
	client       netip.Addr
	method, path string
	agent        int
	status       int
	size         int
	user         string
	referer      bool
}

// requests is a heap: the first to be done comes first.
type requests []request

func (r requests) Len() int           { return len(r) }
func (r requests) Less(i, j int) bool { return r[i].end < r[j].end }
func (r requests) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *requests) Push(x any)        { *r = append(*r, x.(request)) }
func (r *requests) Pop() any {
	last := (*r)[len(*r)-1]
	*r = (*r)[:len(*r)-1]
	return last
}

type generator struct {
	Options
	random  *rand.Rand
	zipf    *rand.Zipf
	to      *bufio.Writer
	err     error
	open    requests
	written int64
	bytes   int64
	line    []byte
}

func (g *generator) full() bool {
	return g.err != nil || g.Requests > 0 && g.written >= g.Requests || g.Bytes > 0 && g.bytes >= g.Bytes
}

// run lets something come at random times, and writes what is done.
func (g *generator) run() {
	now := time.Duration(0)
	for !g.full() {
		// A page view makes some six requests.
		mean := 6 / (g.Rate * busyness(now))
		now += time.Duration(g.random.ExpFloat64() * mean * float64(time.Second))
		g.come(now)
		for len(g.open) > 0 && g.open[0].end <= now && !g.full() {
			g.write(heap.Pop(&g.open).(request))
		}
	}
}

// busyness is how busy the site is at a time of the day, 1 in the mean.
func busyness(now time.Duration) float64 {
	hour := math.Mod(now.Hours(), 24)
	return 1 + 0.8*math.Sin((hour-9)/24*2*math.Pi)
}

func (g *generator) come(now time.Duration) {
	minute := int(now.Minutes())
	hour := math.Mod(now.Hours(), 24)
	switch kind := g.random.IntN(100); {
	case hour >= 14 && hour < 14.5 && kind < 70:
		g.attack(now)
	case hour >= 2 && hour < 5 && kind < 60:
		g.crawl(now)
	case kind < 6:
		g.bot(now, minute)
	case kind < 20:
		g.call(now)
	default:
		g.visit(now)
	}
}

// add has a request written when it is done.
func (g *generator) add(now time.Duration, r request) {
	// Most responses are quick, and some are not.
	r.took = time.Duration(math.Exp(g.random.NormFloat64()*1.1-5.5) * float64(time.Second))
	r.end = now + r.took
	heap.Push(&g.open, r)
}

// address is that of the client with a number: a third have IPv6.
func address(n uint64) netip.Addr {
	mixed := n*0x9e3779b97f4a7c15 ^ n>>7
	if mixed%3 == 0 {
		a := [16]byte{0x20, 0x01, 0x0d, 0xb8, byte(mixed >> 8), byte(mixed >> 16), byte(mixed >> 24), byte(mixed >> 32)}
		a[15] = byte(mixed>>40) | 1
		return netip.AddrFrom16(a)
	}
	return netip.AddrFrom4([4]byte{100, 64 + byte(mixed>>8)%64, byte(mixed >> 16), byte(mixed >> 24)})
}

// visit is a page with what belongs to it.
func (g *generator) visit(now time.Duration) {
	n := g.zipf.Uint64()
	client, agent := address(n), int(n%uint64(len(agents)))
	if client.Is6() {
		// Privacy extensions: the address within the network changes.
		a := client.As16()
		a[14] = byte(now.Hours())
		client = netip.AddrFrom16(a)
	}
	page := g.random.IntN(900)
	status := 200
	if g.random.IntN(50) == 0 {
		status = 404
	}
	g.add(now, request{client: client, agent: agent, method: "GET", path: "/products/" + strconv.Itoa(page), status: status, size: 14_000 + page*7, referer: true})
	for i := range g.random.IntN(9) {
		status := 200
		if g.random.IntN(3) == 0 {
			status = 304
		}
		now += time.Duration(g.random.IntN(180)) * time.Millisecond
		g.add(now, request{client: client, agent: agent, method: "GET", path: assets[(page+i)%len(assets)], status: status, size: 3_000 * (i + 1), referer: true})
	}
	if g.random.IntN(60) == 0 {
		g.add(now+4*time.Second, request{client: client, agent: agent, method: "POST", path: "/login", status: 303, size: 0, referer: true})
	}
}

// call is a program that uses the API, of a customer.
func (g *generator) call(now time.Duration) {
	customer := uint64(g.random.ExpFloat64() * 9)
	for range 1 + g.random.IntN(8) {
		now += time.Duration(g.random.IntN(60)) * time.Millisecond
		g.add(now, request{
			client: address(1_000_000 + customer), agent: len(agents), method: "GET", path: "/api/v2/orders?page=" + strconv.Itoa(g.random.IntN(40)),
			status: 200, size: 2_400, user: fmt.Sprintf("customer-%d", customer),
		})
	}
}

// bot is one that asks every few minutes.
func (g *generator) bot(now time.Duration, minute int) {
	n := uint64(minute % 40)
	for i := range 10 {
		g.add(now+time.Duration(i)*20*time.Millisecond, request{client: address(2_000_000 + n), agent: len(agents) + 1, method: "GET", path: "/feed.xml", status: 200, size: 41_000})
	}
}

// crawl is a crawler that goes through all pages.
func (g *generator) crawl(now time.Duration) {
	for i := range 25 {
		g.add(now+time.Duration(i)*40*time.Millisecond, request{client: netip.MustParseAddr("192.0.2.44"), agent: len(agents) + 2, method: "GET", path: "/products/" + strconv.Itoa(g.random.IntN(5000)) + "?sort=price", status: 200, size: 21_000})
	}
}

// attack is somebody who tries passwords, from many addresses of a few networks.
func (g *generator) attack(now time.Duration) {
	network := byte(g.random.IntN(12))
	client := netip.AddrFrom4([4]byte{198, 51, 100, byte(g.random.IntN(60))})
	if network < 8 {
		a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xbb, network}
		for i := 8; i < 16; i++ {
			a[i] = byte(g.random.IntN(256))
		}
		client = netip.AddrFrom16(a)
	}
	for i := range 12 {
		g.add(now+time.Duration(i)*90*time.Millisecond, request{client: client, agent: len(agents) + 3, method: "POST", path: "/login", status: 401, size: 310})
	}
}
