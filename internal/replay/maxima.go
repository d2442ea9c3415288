package replay

import "time"

// maxima is the largest number of units that one client took in any interval of each of
// several windows. An interval of a window that ends with a request holds what came less
// than the window before it: the same that a limit counts.
//
// It keeps what came within the longest window, each moment by itself as long as there
// are few. When there are many, units that are older than one window are merged within
// a 64th of the next longer one, and count from the latest of their moments: just as a
// limit above 64 counts them. So a figure is never too low, and at most what it would be
// for a window that is longer by a 64th; it is exact for a client with up to exactUpTo
// moments within the longest window.
type maxima struct {
	moments []moment // in the order of time
	begun   int      // how many of them have left all windows
	of      []maximum
	full    int // at how many moments they are merged next
}

// moment is units that count from stamp. What has joined them came from first on.
type moment struct{ first, stamp, units int64 }

type maximum struct {
	first int32 // of the moments that count
	sum   int64
	most  int64
}

const (
	exactUpTo  = 512
	mergeParts = 64
)

func newMaxima(windows []time.Duration) *maxima {
	return &maxima{of: make([]maximum, len(windows)), full: exactUpTo}
}

// add counts units that were taken at a moment, which is not before the one before.
// The windows are in ascending order.
func (m *maxima) add(windows []time.Duration, now, units int64) {
	if n := len(m.moments); n > m.begun && m.moments[n-1].stamp == now {
		m.moments[n-1].units += units
	} else {
		if len(m.moments) == cap(m.moments) {
			m.makeRoom(windows, now)
		}
		m.moments = append(m.moments, moment{now, now, units})
	}
	for i := range m.of {
		x, width := &m.of[i], windows[i].Microseconds()
		x.sum += units
		for m.moments[x.first].stamp+width <= now {
			x.sum -= m.moments[x.first].units
			x.first++
		}
		x.most = max(x.most, x.sum)
	}
	if n := len(m.of); n > 0 {
		m.begun = int(m.of[n-1].first)
	}
}

// giveBack takes units back that were counted at a moment: they are not spent.
func (m *maxima) giveBack(windows []time.Duration, stamp, units int64) {
	// Merging moves units to later moments only.
	for j := m.begun; j < len(m.moments); j++ {
		if m.moments[j].stamp < stamp {
			continue
		}
		if m.moments[j].first > stamp {
			return // they have left all windows
		}
		units = min(units, m.moments[j].units)
		m.moments[j].units -= units
		for i := range m.of {
			if int(m.of[i].first) <= j {
				m.of[i].sum -= units
			}
		}
		return
	}
}

// makeRoom drops what counts no longer, and merges if that is not enough.
func (m *maxima) makeRoom(windows []time.Duration, now int64) {
	m.shift()
	if len(m.moments) < m.full {
		return
	}
	m.merge(windows, now)
	// Merging again soon would cost much and yield little.
	m.full = max(exactUpTo, 2*len(m.moments))
}

func (m *maxima) shift() {
	if m.begun == 0 {
		return
	}
	m.moments = append(m.moments[:0], m.moments[m.begun:]...)
	for i := range m.of {
		m.of[i].first -= int32(m.begun)
	}
	m.begun = 0
}

// merge merges neighbours that the same windows count, within a 64th of the shortest of
// these windows. Their span is measured from the first moment of all: else one entry
// would be extended for ever.
func (m *maxima) merge(windows []time.Duration, now int64) {
	to := 0 // where the next entry goes
	firsts := make([]int32, len(m.of))
	for i := range firsts {
		firsts[i] = -1
	}
	for j, x := range m.moments {
		shortest := len(windows) - 1
		for shortest > 0 && now-x.stamp < windows[shortest-1].Microseconds() {
			shortest--
		}
		span := windows[shortest].Microseconds() / mergeParts
		if to > 0 && x.stamp-m.moments[to-1].first < span && !m.starts(int32(j)) {
			last := &m.moments[to-1]
			last.stamp, last.units = x.stamp, last.units+x.units
		} else {
			m.moments[to] = x
			to++
		}
		for i := range m.of {
			if int(m.of[i].first) == j {
				firsts[i] = int32(to - 1)
			}
		}
	}
	for i := range m.of {
		if m.of[i].first = firsts[i]; firsts[i] < 0 {
			m.of[i].first = int32(to) // nothing counts
		}
	}
	m.moments = m.moments[:to]
}

// starts reports whether a window begins to count with this moment: what is in front of
// it is not counted there any more.
func (m *maxima) starts(j int32) bool {
	for i := range m.of {
		if m.of[i].first == j {
			return true
		}
	}
	return false
}
