package replay

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options are what Run is told. The zero value of a field stands for its default.
type Options struct {
	// Files are the logs, in any order; StandardInput among them at most once.
	Files []string
	Stdin io.Reader
	// Windows are those for which limits are suggested, in any order; none suggests
	// nothing.
	Windows []time.Duration
	// MaxClients bounds how many clients of zones are remembered. Default: DefaultMaxClients.
	MaxClients int
	// Progress is called now and then with how many bytes of the files have been read, if
	// it is not nil, and how many there are, 0 if nobody knows.
	Progress func(read, of int64)
	// Decided is called with each request and whether it is refused, if it is not nil.
	Decided func(r *Record, refused bool)
}

// DefaultMaxClients is how many clients are remembered, those of each zone by themselves.
// One takes some 500 bytes, and up to 20 kB if it sends very many requests.
const DefaultMaxClients = 1_000_000

// ahead is how many chunks of a log are read ahead for each goroutine that parses them.
const ahead = 2

// Run reads the logs and decides what is in them.
func Run(e Evaluator, o Options) (*Result, error) {
	if o.MaxClients <= 0 {
		o.MaxClients = DefaultMaxClients
	}
	began := time.Now()
	p := &pipeline{evaluator: e, options: &o, work: make(chan *batch)}
	sources, err := p.sources()
	if err != nil {
		return nil, err
	}
	windows := slices.Compact(slices.Sorted(slices.Values(o.Windows)))
	d := newDecider(e.Zones(), o.MaxClients, windows)
	agreed := new(agreement)
	ordered := newOrder(func(r *Record) {
		refused := d.decide(r)
		agreed.compare(r, refused)
		if o.Decided != nil {
			o.Decided(r, refused)
		}
	})
	p.start()
	defer p.stop()
	if err := p.merge(sources, ordered); err != nil {
		return nil, err
	}
	ordered.finish()
	return newResult(d, p, ordered, agreed, time.Since(began)), nil
}

// agreement compares decisions with those that stand in the log.
type agreement struct{ compared, differ int64 }

func (a *agreement) compare(r *Record, refused bool) {
	if r.Logged != LoggedNothing {
		a.compared++
		if refused != (r.Logged == LoggedRefused) {
			a.differ++
		}
	}
}

// pipeline reads logs and parses them on all processors. Batches of one log stay in its
// order.
type pipeline struct {
	evaluator Evaluator
	options   *Options
	work      chan *batch
	workers   sync.WaitGroup
	done      chan struct{} // closed when nobody wants batches any more
	read      atomic.Int64  // bytes of files
	size      int64         // of all files, 0 if that is not known
	counts
	cut []error // logs that ended early
}

// source is one log.
type source struct {
	name    string
	first   int64 // when its first request was done
	batches chan *batch
	at      []Record // of the present batch
}

func (p *pipeline) start() {
	p.done = make(chan struct{})
	for range runtime.GOMAXPROCS(0) {
		p.workers.Go(func() {
			w := p.evaluator.NewWorker()
			for b := range p.work {
				b.parse(w)
			}
		})
	}
}

func (p *pipeline) stop() {
	close(p.done)
	p.workers.Wait()
}

// sources finds out when each log begins.
func (p *pipeline) sources() ([]*source, error) {
	var all []*source
	stdin := 0
	for _, name := range p.options.Files {
		s := &source{name: name, first: math.MinInt64}
		if name == StandardInput {
			stdin++
		} else {
			var err error
			if s.first, err = firstOf(name); err != nil {
				return nil, err
			}
			if info, err := os.Stat(name); err == nil {
				p.size += info.Size()
			}
		}
		all = append(all, s)
	}
	switch {
	case len(all) == 0:
		return nil, errors.New("no log is named; name the files of the access log, or - for standard input")
	case stdin > 1:
		return nil, errors.New("standard input (-) can be read only once")
	case stdin == 1:
		p.size = 0
	}
	slices.SortStableFunc(all, func(a, b *source) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	return all, nil
}

// firstOf is when the first request of a file was done, MaxInt64 if it has none near its
// beginning.
func firstOf(name string) (int64, error) {
	var n atomic.Int64
	log, err := open(name, nil, &n)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	s := &splitter{from: io.LimitReader(log, 4*chunkBytes)}
	for chunk := s.next(); chunk != nil; chunk = s.next() {
		rest := *chunk
		for len(rest) > 0 {
			var text []byte
			text, rest = cutLine(rest)
			var line Line
			if line.parse(text) == kindRequest {
				return line.End, nil
			}
		}
	}
	return math.MaxInt64, nil
}

// open begins to read a log.
func (p *pipeline) open(s *source, active *sync.WaitGroup) {
	s.batches = make(chan *batch, ahead*runtime.GOMAXPROCS(0))
	active.Go(func() {
		defer close(s.batches)
		log, err := open(s.name, p.options.Stdin, &p.read)
		if err != nil {
			p.pass(s, &batch{err: err})
			return
		}
		defer log.Close()
		split := &splitter{from: log}
		for chunk := split.next(); chunk != nil; chunk = split.next() {
			if !p.pass(s, &batch{chunk: chunk}) {
				return
			}
		}
		last := &batch{}
		last.long = split.long
		if err := split.failed(); err != nil {
			last.err = fmt.Errorf("%s: %v", s.name, err)
		}
		p.pass(s, last)
	})
}

// pass has a batch parsed, and gives it to who merges the logs. It returns false if
// nobody wants it.
func (p *pipeline) pass(s *source, b *batch) bool {
	b.ready = make(chan struct{})
	select {
	case s.batches <- b:
	case <-p.done:
		return false
	}
	select {
	case p.work <- b:
		return true
	case <-p.done:
		return false
	}
}

// merge gives requests in the order of the time at which they were done. A log is opened
// when the others have come to its beginning.
func (p *pipeline) merge(waiting []*source, into *order) error {
	var active []*source
	var reading sync.WaitGroup
	defer func() {
		reading.Wait()
		close(p.work)
	}()
	for len(active) > 0 || len(waiting) > 0 {
		opens := int64(math.MaxInt64)
		if len(waiting) > 0 {
			opens = waiting[0].first
		}
		least := p.least(active)
		if least < 0 || len(waiting) > 0 && active[least].at[0].End >= opens {
			p.open(waiting[0], &reading)
			if p.refill(waiting[0]) {
				active = append(active, waiting[0])
			}
			waiting = waiting[1:]
			continue
		}
		s := active[least]
		for {
			into.add(&s.at[0])
			if s.at = s.at[1:]; len(s.at) == 0 && !p.refill(s) {
				active = slices.Delete(active, least, least+1)
				break
			}
			if len(active) > 1 || s.at[0].End >= opens {
				break
			}
		}
	}
	return nil
}

// least is the log whose next request was done first, -1 if there is none.
func (p *pipeline) least(active []*source) int {
	least := -1
	for i, s := range active {
		if least < 0 || s.at[0].End < active[least].at[0].End {
			least = i
		}
	}
	return least
}

// refill waits for requests of a log. It returns false at its end.
func (p *pipeline) refill(s *source) bool {
	for b := range s.batches {
		<-b.ready
		p.add(&b.counts)
		if b.err != nil {
			p.cut = append(p.cut, b.err)
		}
		if p.options.Progress != nil {
			p.options.Progress(p.read.Load(), p.size)
		}
		if s.at = b.records; len(s.at) > 0 {
			return true
		}
	}
	return false
}
