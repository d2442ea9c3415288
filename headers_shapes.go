package distributedratelimit

import (
	"net/http"
	"slices"
	"strconv"
)

// headerShape is one way to write what headers tell: under which names, and how.
type headerShape struct {
	names []string // of all its fields, in Go's spelling
	write func(names []string, header http.Header, zones []headerZone)
}

// The shapes of the IETF's draft by its versions. They share names, so a response
// has one of them.
var draftShapes = map[string]*headerShape{
	"draft":  {names: []string{"Ratelimit-Policy", "Ratelimit"}, write: writeDraft},
	"draft7": {names: []string{"Ratelimit-Policy", "Ratelimit"}, write: writeDraft7},
	"draft6": {names: []string{"Ratelimit-Policy", "Ratelimit-Limit", "Ratelimit-Remaining", "Ratelimit-Reset"}, write: writeDraft6},
}

// The shapes of three fields that came before, by the unit of the third.
var legacyWriters = map[string]func(names []string, header http.Header, zones []headerZone){
	"legacy":       writeLegacy,
	"legacy_epoch": writeLegacyEpoch,
}

// legacyPrefix begins the names of the legacy fields, unless told otherwise.
const legacyPrefix = "X-RateLimit"

func legacyShape(word, prefix string) *headerShape {
	names := make([]string, 0, 3)
	for _, what := range []string{"-Limit", "-Remaining", "-Reset"} {
		names = append(names, http.CanonicalHeaderKey(prefix+what))
	}
	return &headerShape{names: names, write: legacyWriters[word]}
}

// set writes the fields for some zones, replacing what is there.
func (s *headerShape) set(header http.Header, zones []headerZone) {
	for _, name := range s.names {
		delete(header, name)
	}
	s.write(s.names, header, zones)
}

// unlessSet is the shape, or nil if the response has one of its fields: two that
// tell of different limits would make no sense together.
func (s *headerShape) unlessSet(header http.Header) *headerShape {
	if s != nil && slices.ContainsFunc(s.names, func(name string) bool { return header[name] != nil }) {
		return nil
	}
	return s
}

// writeDraft writes draft 8 and later: every zone, by its name.
func writeDraft(names []string, header http.Header, zones []headerZone) {
	var room [2][128]byte
	policy, limit := room[0][:0], room[1][:0]
	for i := range zones {
		z := &zones[i]
		policy = appendUnit(appendItem(policy, z.name, "q", z.limit, "w", z.window), z)
		if z.remaining != notCounted {
			limit = appendItem(limit, z.name, "r", z.remaining, "t", z.reset)
		}
	}
	values := []string{string(policy), string(limit)}
	header[names[0]] = values[0:1:1]
	if len(limit) > 0 {
		header[names[1]] = values[1:2:2]
	}
}

// writeDraft7 writes all limits, and in one field how one of them stands.
func writeDraft7(names []string, header http.Header, zones []headerZone) {
	shown := shownZone(zones)
	header[names[0]] = []string{quotas(zones, shown)}
	if shown.remaining == notCounted {
		return
	}
	var room [96]byte
	limit := strconv.AppendInt(append(room[:0], "limit="...), shown.limit, 10)
	limit = strconv.AppendInt(append(limit, ", remaining="...), shown.remaining, 10)
	if shown.reset != noReset {
		limit = strconv.AppendInt(append(limit, ", reset="...), shown.reset, 10)
	}
	header[names[1]] = []string{string(limit)}
}

// writeDraft6 writes all limits, and in three fields how one of them stands.
func writeDraft6(names []string, header http.Header, zones []headerZone) {
	shown := shownZone(zones)
	header[names[0]] = []string{quotas(zones, shown)}
	writeThree(names[1:], header, shown, shown.reset)
}

func writeLegacy(names []string, header http.Header, zones []headerZone) {
	shown := shownZone(zones)
	writeThree(names, header, shown, shown.reset)
}

func writeLegacyEpoch(names []string, header http.Header, zones []headerZone) {
	shown := shownZone(zones)
	reset := int64(noReset)
	if shown.reset != noReset {
		reset = shown.decided + shown.reset
	}
	writeThree(names, header, shown, reset)
}

func writeThree(names []string, header http.Header, z *headerZone, reset int64) {
	header[names[0]] = []string{strconv.FormatInt(z.limit, 10)}
	if z.remaining != notCounted {
		header[names[1]] = []string{strconv.FormatInt(z.remaining, 10)}
	}
	if reset != noReset {
		header[names[2]] = []string{strconv.FormatInt(reset, 10)}
	}
}

// quotas lists limits as drafts 3 to 7 do, without names. The one that the other
// fields are about comes first, because some clients read no further.
func quotas(zones []headerZone, shown *headerZone) string {
	var room [96]byte
	list := appendQuota(room[:0], shown)
	for i := range zones {
		if z := &zones[i]; z != shown {
			list = appendQuota(append(list, ", "...), z)
		}
	}
	return string(list)
}

func appendQuota(dst []byte, z *headerZone) []byte {
	dst = append(strconv.AppendInt(dst, z.limit, 10), ";w="...)
	return appendUnit(strconv.AppendInt(dst, z.window, 10), z)
}

// shownZone is the zone that fields tell of which can tell of one only: the one that
// refused, and of several the one with the longest wait; else the one nearest to its
// limit. Placeholders show the same one.
func shownZone(zones []headerZone) *headerZone {
	shown := &zones[0]
	for i := range zones[1:] {
		if z := &zones[1+i]; z.comesBefore(shown) {
			shown = z
		}
	}
	return shown
}

func (z *headerZone) comesBefore(other *headerZone) bool {
	if z.reason != other.reason {
		return z.reason > other.reason
	}
	if z.reason != reasonNone {
		return z.wait > other.wait
	}
	return z.share() < other.share()
}

func (z *headerZone) share() float64 {
	return share(z.remaining != notCounted, z.remaining, z.limit)
}
