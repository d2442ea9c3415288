package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// trickleTime is how long Trickle waits after a byte.
const trickleTime = 50 * time.Microsecond

// Proxy stands between a client and a server, and makes trouble. The zero
// trouble is none, and each can be had together with the others. It is safe for
// concurrent use.
//
// What a client sends, and what the server sends, comes in chunks as the
// network delivers them: a chunk is one request or reply if there is one at a
// time, and may be many, or a part of one, if there are more.
type Proxy struct {
	// Addr is where clients connect to.
	Addr string

	t testing.TB

	mu       sync.Mutex // guards the rest
	listener net.Listener
	target   string
	accepted int
	links    map[*link]struct{}
	closed   bool

	delay      time.Duration
	every      int           // chunks of replies from one that is late to the next, 0 for none
	late       time.Duration // by how much more than delay
	count      int           // of chunks since the latest one that was late
	drop       int
	lose       int
	cut        int
	trickle    bool
	held       chan struct{} // not nil: replies are held until it is closed
	blackholed bool          // new connections are
	silenced   int           // how often Blackhole befell those there were
	cuts       int           // how often Cut did
}

// link is a connection to the proxy and its continuation to the server.
type link struct {
	client net.Conn
	server net.Conn      // nil if it was swallowed from the start
	done   chan struct{} // closed when both connections are
	once   sync.Once
	dead   bool // nothing passes any more; guarded by the proxy's mu
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		l.client.Close()
		if l.server != nil {
			l.server.Close()
		}
	})
}

// NewProxy starts a proxy to an address. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	p := &Proxy{
		Addr: listener.Addr().String(), target: target, listener: listener,
		links: make(map[*link]struct{}), t: t,
	}
	go p.accept(listener)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		if p.listener != nil {
			p.listener.Close()
		}
		p.mu.Unlock()
		p.Cut()
	})
	return p
}

// Delay makes everything that the server sends arrive later by d.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// DelayEvery makes every k-th chunk that the server sends arrive later by d,
// counted from now over all connections. What comes behind it on its connection
// waits for it. A k of 0 ends that.
func (p *Proxy) DelayEvery(k int, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.every, p.late, p.count = k, d, 0
}

// Trickle makes what the server sends arrive one byte at a time, with a pause
// between them: a reader finds replies in pieces.
func (p *Proxy) Trickle(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trickle = on
}

// HoldReplies keeps what the server sends, until ReleaseReplies: commands are
// executed, and nobody learns it yet. What a server said before it closed the
// connection, or died, is kept as well.
func (p *Proxy) HoldReplies() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// ReleaseReplies delivers what was held, all at once.
func (p *Proxy) ReleaseReplies() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// DropRequests closes a client's connection instead of passing on what the
// client sends, and does so n times: a command is not executed, and its sender
// cannot know.
func (p *Proxy) DropRequests(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop = n
}

// LoseReplies closes a client's connection instead of passing on what the
// server sends, and does so n times: a command is executed, and nobody learns
// it.
func (p *Proxy) LoseReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = n
}

// CutReplies passes on the first half of what the server sends and resets the
// client's connection, and does so n times.
func (p *Proxy) CutReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = n
}

// Blackhole makes connections go silent, as a firewall does that has forgotten
// them: nothing passes in either direction, and nobody is told, not even that
// the other side has closed. With established, that befalls the connections
// there are, now and for ever; with connects, those that are made from now on,
// each for ever too. The latter ends with the next call without connects, and
// connections made after it work.
func (p *Proxy) Blackhole(established, connects bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blackholed = connects
	if established {
		p.silenced++
		for l := range p.links {
			l.dead = true
		}
	}
}

// Refuse makes the port refuse connections, until it is called with false. The
// connections there are stay.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed || on == (p.listener == nil):
	case on:
		p.listener.Close() // returns when the port is free
		p.listener = nil
	default:
		// Somebody else's connection may have been given the port for a while.
		for attempt := 1; ; attempt++ {
			listener, err := net.Listen("tcp", p.Addr)
			if err == nil {
				p.listener = listener
				go p.accept(listener)
				return
			}
			if attempt == 100 {
				p.t.Errorf("redistest: open the proxy's port again: %v", err)
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// Redirect leads connections that are made from now on to another address.
func (p *Proxy) Redirect(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut closes all connections, those in a black hole too, and those that the proxy
// is still making.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	for l := range p.links {
		l.close()
	}
}

// Accepted returns how many connections there have been. One that the server
// did not take does not count; one that went into a black hole does.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open returns how many connections there are.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}
