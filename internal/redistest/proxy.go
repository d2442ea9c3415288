package redistest

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server, and makes trouble. The zero
// trouble is none. It is safe for concurrent use.
type Proxy struct {
	// Addr is where clients connect to.
	Addr string

	target   string
	listener net.Listener

	mu       sync.Mutex
	accepted int
	conns    map[net.Conn]struct{}
	delay    time.Duration
	lose     int
	closed   bool
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
		conns: make(map[net.Conn]struct{}),
	}
	go p.accept()
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		listener.Close()
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

// LoseReplies closes a client's connection instead of passing on what the
// server sends, and does so n times: a command is executed, and nobody learns
// it.
func (p *Proxy) LoseReplies(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lose = n
}

// Cut closes all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// Accepted returns how many connections there have been.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Open returns how many connections there are.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns) / 2
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.accepted++
		if p.closed {
			client.Close()
			server.Close()
		} else {
			p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		}
		p.mu.Unlock()
		end := func() {
			client.Close()
			server.Close()
			p.mu.Lock()
			delete(p.conns, client)
			delete(p.conns, server)
			p.mu.Unlock()
		}
		go func() {
			defer end()
			io.Copy(server, client)
		}()
		go func() {
			defer end()
			p.replies(client, server)
		}()
	}
}

// replies passes on what the server sends. What arrives is not read later for
// being delayed, so that the delay does not add up.
func (p *Proxy) replies(client, server net.Conn) {
	type part struct {
		due  time.Time
		data []byte
	}
	parts := make(chan part, 1024)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for part := range parts {
			time.Sleep(time.Until(part.due))
			if _, err := client.Write(part.data); err != nil {
				return
			}
		}
	}()
	defer close(parts)
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		delay, lose := p.delay, p.lose > 0
		if lose {
			p.lose--
		}
		p.mu.Unlock()
		if lose {
			return
		}
		select {
		case parts <- part{time.Now().Add(delay), append([]byte(nil), buf[:n]...)}:
		case <-gone:
			return
		}
	}
}
