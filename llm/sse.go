package llm

import "bytes"

// events takes a stream of server-sent events apart as its bytes come, by the
// rules of the HTML standard: lines end by CR, LF or CRLF, a byte order mark may
// stand first, several lines of data are one with line ends between them, an
// empty line ends the event. The names of events do not matter: both APIs repeat
// them in the data.
//
// If hold is set, the bytes of each event are held until it is known whether it
// is to be dropped. That delays nobody: a client cannot use an event before its
// last byte either. Comments alone are not held.
type events struct {
	data func(p []byte) // bytes of data, as they come
	end  func() bool    // an event with data has ended; true drops it if it is held
	sure func() bool    // this event is not to be dropped
	hold bool

	bom     int  // bytes of a byte order mark that were read; -1 when it is over
	empty   bool // no byte of the line was read
	name    int  // bytes of "data" that the line begins with; -1 if it is another line
	value   bool // after the colon
	space   bool // the next byte may be the space after the colon
	comment bool
	cr      bool // the last byte was CR
	lines   int  // of data in this event
	fields  bool // the event has a line that is no comment

	held    []byte
	release bool // the rest of the event is not held
	dropped bool // the last event was, so that a LF after its CR is as well
	out     []byte
}

const (
	dataName = "data"
	bomText  = "\xef\xbb\xbf"

	// maxHeld bounds the memory. The event that is dropped takes less than a
	// kilobyte; what exceeds this is passed on.
	maxHeld = 16 << 10
)

func (e *events) init() { e.empty = true }

// pass reads bytes and returns what is to be passed on: p itself, or a slice
// that is valid until the next call.
func (e *events) pass(p []byte) []byte {
	e.out = e.out[:0]
	from := 0 // bytes of p before it are settled
	for i := 0; i < len(p); {
		if e.cr {
			e.cr = false
			if p[i] == '\n' {
				i++
				from = e.lineFeed(from, i)
				continue
			}
		}
		e.dropped = false
		if e.bom >= 0 && e.skipBOM(p[i]) {
			i++
			continue
		}
		n := lineLength(p[i:])
		if n > 0 {
			e.read(p[i : i+n])
			i += n
		}
		if i == len(p) {
			break
		}
		e.cr = p[i] == '\r'
		i++
		if drop, over := e.endLine(); over {
			from = e.settle(p, from, i, drop)
		}
	}
	if !e.hold {
		return p
	}
	return e.rest(p[from:])
}

// settle passes the event up to p[to] on, or drops it.
func (e *events) settle(p []byte, from, to int, drop bool) int {
	if !e.hold {
		return to
	}
	if e.dropped = drop && !e.release; !e.dropped {
		e.out = append(append(e.out, e.held...), p[from:to]...)
	}
	e.held, e.release = e.held[:0], false
	return to
}

// lineFeed takes the LF of a CRLF, which ends at p[to]. After the end of an
// event it goes where the event went, at once: a client may wait for it.
func (e *events) lineFeed(from, to int) int {
	if !e.hold || from != to-1 || len(e.held) > 0 {
		return from // within an event
	}
	if !e.dropped {
		e.out = append(e.out, '\n')
	}
	e.dropped = false
	return to
}

// rest decides on the bytes of an event that has not ended.
func (e *events) rest(p []byte) []byte {
	if !e.release && len(e.held)+len(p) <= maxHeld && !e.sure() {
		e.held = append(e.held, p...)
		return e.out
	}
	e.release = true
	e.out = append(append(e.out, e.held...), p...)
	e.held = e.held[:0]
	return e.out
}

// finish reads an event that no empty line has ended and returns what is still
// held. A stream that broke off within an event ends with no whole JSON text, so
// that this does no harm.
func (e *events) finish() []byte {
	e.out = e.out[:0]
	drop := false
	if !e.empty {
		e.endLine()
	}
	if e.lines > 0 {
		drop, _ = e.endLine()
	}
	if !drop && !e.release {
		e.out = append(e.out, e.held...)
	}
	e.held = nil
	return e.out
}

// lineLength is how many bytes come before the next line end.
func lineLength(p []byte) int {
	n := bytes.IndexByte(p, '\n')
	if n < 0 {
		n = len(p)
	}
	if cr := bytes.IndexByte(p[:n], '\r'); cr >= 0 {
		return cr
	}
	return n
}

// skipBOM says whether the byte belongs to a byte order mark at the beginning.
// Bytes that only look like one begin a line that means nothing.
func (e *events) skipBOM(c byte) bool {
	if c == bomText[e.bom] {
		if e.bom++; e.bom == len(bomText) {
			e.bom = -1
		}
		return true
	}
	if e.bom > 0 {
		e.empty, e.name = false, -1
	}
	e.bom = -1
	return false
}

// read takes bytes of one line.
func (e *events) read(p []byte) {
	if e.empty {
		e.empty, e.comment = false, p[0] == ':'
		e.fields = e.fields || !e.comment
	}
	for len(p) > 0 && !e.value && e.name >= 0 {
		switch {
		case e.name < len(dataName) && p[0] == dataName[e.name]:
			e.name++
		case e.name == len(dataName) && p[0] == ':':
			e.value, e.space = true, true
			e.beginData()
		default:
			e.name = -1
		}
		p = p[1:]
	}
	if !e.value || len(p) == 0 {
		return
	}
	if e.space && p[0] == ' ' {
		p = p[1:]
	}
	e.space = false
	e.data(p)
}

func (e *events) beginData() {
	if e.lines > 0 {
		e.data([]byte{'\n'})
	}
	e.lines++
}

// endLine ends a line. over says that what came so far is settled: an event, or
// a comment between events.
func (e *events) endLine() (drop, over bool) {
	switch {
	case e.empty:
		if e.lines > 0 {
			drop = e.end()
		}
		e.lines, e.fields, over = 0, false, true
	case e.name == len(dataName) && !e.value:
		e.beginData() // "data" alone is a line of data that is empty
	case e.comment && !e.fields:
		over = true
	}
	e.empty, e.name, e.value, e.space, e.comment = true, 0, false, false, false
	if e.bom >= 0 {
		e.bom = -1
	}
	return drop, over
}
