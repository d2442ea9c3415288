package llm

// field is a value that a response is read for.
type field uint8

const (
	noField field = iota
	inputField
	cachedField
	writeField
	writeHourField
	writeFiveField // for five minutes
	outputField
	totalField
	counts // how many of the fields above are counts, with noField

	modelField
	typeField
	usageField
	choicesField
	choiceField // an element of choices
	moderationField
	errorField
	generatedField // what was generated and did not fit, in an error
)

// The places of usage in the two APIs, and the bodies and events around them.
var (
	chatUsage = &place{name: "usage", field: usageField, kids: []*place{
		{name: "prompt_tokens", field: inputField},
		{name: "completion_tokens", field: outputField},
		{name: "total_tokens", field: totalField},
		{name: "prompt_tokens_details", kids: []*place{
			{name: "cached_tokens", field: cachedField},
			{name: "cache_write_tokens", field: writeField},
		}},
	}}
	responsesUsage = &place{name: "usage", field: usageField, kids: []*place{
		{name: "input_tokens", field: inputField},
		{name: "output_tokens", field: outputField},
		{name: "total_tokens", field: totalField},
		{name: "input_tokens_details", kids: []*place{
			{name: "cached_tokens", field: cachedField},
			{name: "cache_write_tokens", field: writeField},
		}},
	}}
	messagesUsage = &place{name: "usage", field: usageField, kids: append(messagesCounts(false),
		&place{name: "iterations", kids: []*place{{name: "[]", kids: append(messagesCounts(true), modelPlace)}}},
	)}

	modelPlace = &place{name: "model", field: modelField}
	typePlace  = &place{name: "type", field: typeField}
	// Groq answers 400, and puts there what the model has said.
	errorPlace = &place{name: "error", field: errorField, kids: []*place{{name: "failed_generation", field: generatedField}}}

	chatRoot = &place{kids: []*place{
		modelPlace, chatUsage, errorPlace,
		{name: "choices", field: choicesField, kids: []*place{{name: "[]", field: choiceField}}},
		{name: "moderation", field: moderationField},
	}}
	responsesRoot  = &place{kids: []*place{modelPlace, responsesUsage, errorPlace}}
	responsesEvent = &place{kids: []*place{
		typePlace, errorPlace,
		{name: "response", kids: []*place{modelPlace, responsesUsage}},
	}}
	messagesRoot  = &place{kids: []*place{modelPlace, messagesUsage, errorPlace}}
	messagesEvent = &place{kids: []*place{
		typePlace, messagesUsage, errorPlace,
		{name: "message", kids: []*place{modelPlace, messagesUsage}},
	}}
)

func messagesCounts(row bool) []*place {
	return []*place{
		{name: "input_tokens", field: inputField, row: row},
		{name: "cache_read_input_tokens", field: cachedField, row: row},
		{name: "cache_creation_input_tokens", field: writeField, row: row},
		{name: "output_tokens", field: outputField, row: row},
		{name: "cache_creation", kids: []*place{
			{name: "ephemeral_1h_input_tokens", field: writeHourField, row: row},
			{name: "ephemeral_5m_input_tokens", field: writeFiveField, row: row},
		}},
	}
}

func (e endpoint) root(stream bool) *place {
	switch {
	case e == chat:
		return chatRoot
	case e == responses && stream:
		return responsesEvent
	case e == responses:
		return responsesRoot
	case stream:
		return messagesEvent
	}
	return messagesRoot
}

// counted are counts, and which of them were there.
type counted struct {
	n    [counts]int64
	seen [counts]bool
}

// reading is what one JSON text, a body or an event, says. It is the sink of a
// scanner.
type reading struct {
	counted
	rows counted // sums over the rows of usage.iterations

	usage      bool // an object stood there
	bad        bool // a count that is none: the usage cannot be relied on
	choices    bool // the list was there
	choice     bool // and had an element
	moderation bool
	failed     bool // an error object
	generated  bool // with what was generated all the same
	kind       string
	model      func(name []byte) // hears each name, nil for one that is too long
}

func (r *reading) reset() { *r = reading{model: r.model} }

func (r *reading) open(p *place, kind byte) {
	switch p.field {
	case usageField:
		r.usage = r.usage || kind == '{'
	case choicesField:
		r.choices = r.choices || kind == '['
	case choiceField:
		r.choice = true
	case moderationField:
		r.moderation = r.moderation || kind != 'n'
	case errorField:
		r.failed = r.failed || kind != 'n'
	case generatedField:
		r.generated = r.generated || kind != 'n' && kind != '"' // string looks at those
	case noField, modelField, typeField:
	default: // null is the same as nothing
		r.bad = r.bad || kind != '0' && kind != 'n'
	}
}

func (r *reading) number(p *place, text []byte) {
	if p.field >= counts {
		return
	}
	n, ok := parseCount(text)
	if !ok {
		r.bad = true
		return
	}
	if p.row {
		r.rows.n[p.field] = min(r.rows.n[p.field]+n, maxTokens)
		r.rows.seen[p.field] = true
		return
	}
	r.n[p.field] = max(r.n[p.field], n)
	r.seen[p.field] = true
}

// spoke reports whether there is something that a model has said.
func (r *reading) spoke() bool { return r.generated || r.choice }

// eventTypes are the types that say something here.
var eventTypes = [...]string{"error", "message_stop", "response.completed", "response.incomplete", "response.failed"}

func (r *reading) string(p *place, text []byte) {
	switch p.field {
	case generatedField:
		r.generated = r.generated || text == nil || len(text) > 0
	case modelField:
		r.model(text)
	case typeField:
		r.kind = ""
		for _, kind := range eventTypes {
			if string(text) == kind {
				r.kind = kind
			}
		}
	}
}

// merge takes in what an event says: counts are cumulative in all streams, so
// that the largest of each is the last. The rows of iterations count as their
// sum, where that is more: rows of compactions are not in the sums above them.
func (c *counted) merge(r *reading) {
	for i := range c.n {
		c.n[i] = max(c.n[i], r.n[i], r.rows.n[i])
		c.seen[i] = c.seen[i] || r.seen[i] || r.rows.seen[i]
	}
}

// whole says whether both ends of the usage were there.
func (c *counted) whole() bool { return c.seen[inputField] && c.seen[outputField] }

// total sorts the counts into the fields that have a price. hour says that the
// request asked for writes that are kept for an hour.
func (c *counted) total(api API, hour bool) Usage {
	u := Usage{Input: c.n[inputField], Cached: c.n[cachedField], CacheWrite: c.n[writeField], Output: c.n[outputField]}
	if api == OpenAI {
		// Cached and written tokens are a part of the input. Reasoning is a part
		// of the output, but some servers that speak this API count it in the
		// total only.
		u.Output = max(u.Output, c.n[totalField]-u.Input)
		u.Cached = min(u.Cached, u.Input)
		u.CacheWrite = min(u.CacheWrite, u.Input-u.Cached)
		u.Input -= u.Cached + u.CacheWrite
		return u
	}
	// What was written for an hour is told with the first event only, though
	// more may be written later: whatever is not said to be for five minutes is
	// for an hour if any of it is.
	written := max(u.CacheWrite, c.n[writeHourField]+c.n[writeFiveField])
	u.CacheWrite = written
	if c.n[writeHourField] > 0 || hour && !c.seen[writeFiveField] {
		u.CacheWrite = min(c.n[writeFiveField], written-c.n[writeHourField])
		u.CacheWriteHour = written - u.CacheWrite
	}
	return u
}
