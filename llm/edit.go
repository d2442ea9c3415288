package llm

import (
	"slices"
	"strconv"
)

// edit replaces body[from:to] by text.
type edit struct {
	from, to int
	text     string
}

// apply returns a copy of the body with the edits, which must not overlap. All
// other bytes stay as they are.
func apply(body []byte, edits []edit) []byte {
	slices.SortStableFunc(edits, func(a, b edit) int { return a.from - b.from })
	size := len(body)
	for _, e := range edits {
		size += len(e.text) - (e.to - e.from)
	}
	out, at := make([]byte, 0, size), 0
	for _, e := range edits {
		out = append(out, body[at:e.from]...)
		out = append(out, e.text...)
		at = e.to
	}
	return append(out, body[at:]...)
}

// span is where a value stands in the body. to is 0 if it is not there.
type span struct{ from, to int }

// object is where an object begins, and whether it has members.
type object struct {
	inside int // after the brace
	empty  bool
}

// insert writes a member at the object's beginning. The member must not be
// there: two with one name are read in two ways.
func (o object) insert(name, value string) edit {
	text := strconv.Quote(name) + ":" + value
	if !o.empty {
		text += ","
	}
	return edit{o.inside, o.inside, text}
}

// set writes a bound, in place of a null if the request has one there.
func (f *facts) set(field string, tokens int64) edit {
	value := strconv.FormatInt(tokens, 10)
	if at := f.nullBounds[field]; at.to > 0 {
		return edit{at.from, at.to, value}
	}
	return f.top.insert(field, value)
}

// askUsage writes stream_options.include_usage.
func (f *facts) askUsage() edit {
	switch {
	case f.includeUsage.to > 0: // false or null
		return edit{f.includeUsage.from, f.includeUsage.to, "true"}
	case f.nullStreamOptions.to > 0:
		return edit{f.nullStreamOptions.from, f.nullStreamOptions.to, `{"include_usage":true}`}
	case f.streamOptions.inside > 0:
		return f.streamOptions.insert("include_usage", "true")
	}
	return f.top.insert("stream_options", `{"include_usage":true}`)
}
