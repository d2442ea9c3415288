package redistest

import (
	"net"
	"time"
)

func (p *Proxy) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target, blackholed, silenced, cuts := p.target, p.blackholed, p.silenced, p.cuts
		p.mu.Unlock()
		if blackholed {
			p.pass(client, nil, silenced, cuts)
			continue
		}
		// Not here: a target that does not answer would hold up the others.
		go func() {
			server, err := net.DialTimeout("tcp", target, replyTime)
			if err != nil {
				client.Close()
				return
			}
			p.pass(client, server, silenced, cuts)
		}()
	}
}

// pass passes on what a client and its server send, or nothing at all if there
// is no server, or if connections were silenced since the client came. If they
// were cut since, so is this one: it may lead to where none is to lead any more.
func (p *Proxy) pass(client, server net.Conn, silenced, cuts int) {
	l := &link{client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	p.accepted++
	l.dead = server == nil || silenced != p.silenced
	if p.closed || cuts != p.cuts {
		l.close()
	} else {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	go p.requests(l)
	if server != nil {
		go p.replies(l)
	}
}

// end closes a link.
func (p *Proxy) end(l *link) {
	l.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// take reports whether there is one left of n, and takes it.
func take(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

// requests passes on what the client sends. When the client closes, the link
// ends, in a black hole too: there is nobody left to whom it could be silent.
func (p *Proxy) requests(l *link) {
	defer p.end(l)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		dead := l.dead
		drop := !dead && take(&p.drop)
		p.mu.Unlock()
		switch {
		case dead:
			continue
		case drop:
			return
		}
		if _, err := l.server.Write(buf[:n]); err != nil && !p.isDead(l) {
			return
		}
	}
}

func (p *Proxy) isDead(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l.dead
}

// chunk is what is on its way to a client.
type chunk struct {
	due  time.Time
	data []byte
	cut  bool // the connection is reset after it
}

// replies passes on what the server sends. What arrives is not read later for
// being delayed, so that the delay does not add up.
func (p *Proxy) replies(l *link) {
	chunks := make(chan chunk, 1024)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for c := range chunks {
			if !p.deliver(l, c) {
				return
			}
		}
	}()
	if p.readReplies(l, chunks, gone) {
		close(chunks)
		<-gone // what is on its way arrives before the end
	} else {
		defer close(chunks)
	}
	// The server's close does not get through a black hole.
	if !p.isDead(l) {
		p.end(l)
	}
}

// readReplies reads until the connection is to end, and reports whether what
// was read is still to be delivered.
func (p *Proxy) readReplies(l *link, chunks chan<- chunk, gone <-chan struct{}) bool {
	buf := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buf)
		if err != nil {
			return true
		}
		p.mu.Lock()
		if l.dead {
			p.mu.Unlock()
			continue
		}
		lose := take(&p.lose)
		cut := !lose && take(&p.cut)
		delay := p.delay
		if p.every > 0 && !lose {
			if p.count++; p.count == p.every {
				p.count = 0
				delay += p.late
			}
		}
		p.mu.Unlock()
		if lose {
			return false
		}
		if cut {
			n = (n + 1) / 2
		}
		select {
		case chunks <- chunk{time.Now().Add(delay), append([]byte(nil), buf[:n]...), cut}:
		case <-gone:
			return false
		}
		if cut {
			return true
		}
	}
}

// deliver brings a chunk to the client when it is time, and reports whether
// there may be more.
func (p *Proxy) deliver(l *link, c chunk) bool {
	if wait := time.Until(c.due); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.done:
			return false
		}
	}
	for len(c.data) > 0 {
		p.mu.Lock()
		held, dead, trickle := p.held, l.dead, p.trickle
		p.mu.Unlock()
		if dead {
			return true // nothing arrives
		}
		if held != nil {
			select {
			case <-held:
				continue
			case <-l.done:
				return false
			}
		}
		now := c.data
		if trickle {
			now = c.data[:1]
		}
		if _, err := l.client.Write(now); err != nil {
			return false
		}
		c.data = c.data[len(now):]
		if trickle && len(c.data) > 0 {
			time.Sleep(trickleTime)
		}
	}
	if c.cut {
		_ = l.client.(*net.TCPConn).SetLinger(0) // it may be closed already
		p.end(l)
	}
	return true
}
