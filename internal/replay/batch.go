package replay

import (
	"bytes"
)

// batch is what a chunk of a log holds. It is made by one goroutine, and belongs to
// another one once ready is closed.
type batch struct {
	chunk   *[]byte
	ready   chan struct{}
	err     error // the log ended with it
	records []Record
	counts
}

// counts is what is counted of lines.
type counts struct {
	lines, bytes        int64
	requests            int64
	other, broken, long int64 // lines that are no requests
	unlimited           int64 // requests that no zone applies to
	hosts               map[string]int64
	loggedRefused       int64
	first, last         int64 // when requests were done, in microseconds since 1970; 0 if there are none
}

// hostsKept bounds how many hosts are remembered of requests that no zone applies to.
const hostsKept = 100

func (c *counts) add(other *counts) {
	c.lines += other.lines
	c.bytes += other.bytes
	c.requests += other.requests
	c.other += other.other
	c.broken += other.broken
	c.long += other.long
	c.unlimited += other.unlimited
	c.loggedRefused += other.loggedRefused
	if other.first != 0 {
		c.span(other.first)
		c.span(other.last)
	}
	for host, n := range other.hosts {
		c.host([]byte(host), n)
	}
}

func (c *counts) span(end int64) {
	if c.first == 0 || end < c.first {
		c.first = end
	}
	c.last = max(c.last, end)
}

func (c *counts) host(host []byte, n int64) {
	if c.hosts == nil {
		c.hosts = make(map[string]int64)
	}
	if _, ok := c.hosts[string(host)]; ok || len(c.hosts) < hostsKept {
		c.hosts[string(host)] += n
	}
}

// parse parses the chunk, and has each request evaluated.
func (b *batch) parse(w Worker) {
	defer close(b.ready)
	if b.chunk == nil {
		return
	}
	rest := *b.chunk
	b.bytes = int64(len(rest))
	b.records = make([]Record, 0, len(rest)/900+16)
	parts := make([]Part, 0, len(rest)/450+16)
	var line Line
	for len(rest) > 0 {
		var text []byte
		if text, rest = cutLine(rest); len(text) == 0 {
			continue
		}
		if len(text) > maxLine {
			b.long++
			continue
		}
		b.lines++
		switch line.parse(text) {
		case kindOther:
			b.other++
			continue
		case kindBroken:
			b.broken++
			continue
		}
		begin := len(parts)
		parts = w.Gather(&line, parts)
		b.request(&line, parts[begin:len(parts):len(parts)])
	}
	chunks.Put(b.chunk)
	b.chunk = nil
}

func (b *batch) request(line *Line, parts []Part) {
	b.requests++
	b.span(line.End)
	if string(line.Logged) == "refused" {
		b.loggedRefused++
	}
	if len(parts) == 0 {
		b.unlimited++
		b.host(line.Host, 1)
		return
	}
	r := Record{Start: line.Start, End: line.End, Parts: parts}
	switch string(line.Logged) {
	case "refused":
		r.Logged = LoggedRefused
	case "":
	default:
		r.Logged = LoggedGranted
	}
	b.records = append(b.records, r)
}

// cutLine cuts off the first line, without its end.
func cutLine(chunk []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(chunk, []byte{'\n'})
	return bytes.TrimRight(line, "\r"), rest
}
