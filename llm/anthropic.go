package llm

// messagesFields are the fields of messages that only set how text is made, or
// whose text is a part of the body. Not among them are fallbacks, compaction and
// context_management: other models, and output beside max_tokens.
var messagesFields = set("cache_control", "diagnostics", "metadata", "stop_sequences", "temperature", "tool_choice", "top_k", "top_p")

// textBlocks are the types of content blocks that hold their text. Results of
// Anthropic's own tools and references to deferred ones are not among them.
var textBlocks = set("text", "thinking", "redacted_thinking", "tool_use", "search_result")

// Tools that bring their own description, and the beginnings of the types of
// those that run at the client and are described by the API.
var (
	anthropicTools       = set("", "custom")
	anthropicClientTools = []string{"bash_20", "text_editor_20", "memory_20"}
)

func (r *reader) messages() {
	r.top, _ = r.object(func(name string) {
		switch name {
		case "model":
			r.readModel()
		case "max_tokens":
			r.bound(name, 0)
		case "stream":
			r.stream = r.truth(name)
		case "system":
			r.blocks()
		case "messages":
			r.array(func() {
				r.object(func(name string) {
					if name == "content" {
						r.blocks()
						return
					}
					r.skip()
				})
			})
		case "tools":
			r.tools(anthropicTools, anthropicClientTools)
		case "thinking":
			r.readThinking()
		case "service_tier":
			r.tier(name, "auto", "standard_only")
		case "speed":
			r.tier(name, "standard")
		case "inference_geo":
			r.tier(name, "global")
		case "output_config", "output_format":
			// A format brings instructions, as tools do.
			if r.present() {
				r.describedTools++
			}
		default:
			r.other(name, messagesFields)
		}
	})
}

// blocks reads text, or a list of content blocks.
func (r *reader) blocks() {
	switch r.dec.PeekKind() {
	case '"', 'n':
		r.skip()
	case '[':
		r.array(r.block)
	default:
		r.skip()
		r.mark("content that is neither text nor a list")
	}
}

// block reads one content block. The results of tools and some documents have
// blocks in their turn.
func (r *reader) block() {
	var kind string
	var src source
	r.object(func(name string) {
		switch name {
		case "type":
			kind = r.kind()
		case "content":
			r.blocks()
		case "source":
			// A search_result has the address of its text here.
			src = r.source()
		default:
			r.skip()
		}
	})
	switch {
	case textBlocks[kind], kind == "tool_result":
	case kind == "document" && (src.kind == "text" || src.kind == "content"):
	default:
		r.mark("content of type " + quotable(kind))
		if (kind == "image" || kind == "document") && src.kind == "base64" {
			r.mediaBytes += src.bytes
		}
	}
}

// source is where an image or a document comes from.
type source struct {
	kind  string
	bytes int64 // of base64
}

func (r *reader) source() source {
	var s source
	r.object(func(name string) {
		switch name {
		case "type":
			s.kind = r.kind()
		case "content":
			r.blocks()
		case "data":
			s.bytes = r.media()
		default:
			r.skip()
		}
	})
	return s
}

// readThinking reads how much the model may think. Only "enabled" has a budget
// of its own; the others stay within max_tokens.
func (r *reader) readThinking() {
	var kind string
	null := r.dec.PeekKind() == 'n'
	r.object(func(name string) {
		switch name {
		case "type":
			kind = r.kind()
		case "budget_tokens":
			if r.dec.PeekKind() == 'n' {
				r.skip()
				return
			}
			r.thinking = r.count("budget_tokens", 1)
		default:
			r.skip()
		}
	})
	switch kind {
	case "enabled", "disabled", "adaptive", "between_tools":
	default:
		if !null {
			r.suspect("thinking of type", kind)
		}
	}
}
