package llm

import (
	"slices"
	"strings"
)

// The lists below are of what is known. A field or a tool that is on none is
// refused unless the configuration accepts it: what is yet to come may cost
// anything, and not only input.

// chatFields are the fields of chat completions that only set how text is made,
// or whose text is a part of the body.
var chatFields = set("frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "metadata",
	"moderation", "parallel_tool_calls", "presence_penalty", "prompt_cache_key", "prompt_cache_options",
	"prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "seed", "stop", "store",
	"temperature", "tool_choice", "top_logprobs", "top_p", "user", "verbosity")

// responsesFields are the same for responses. max_tool_calls matters to hosted
// tools only, which are marked themselves.
var responsesFields = set("include", "instructions", "max_tool_calls", "metadata", "moderation",
	"parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning",
	"safety_identifier", "store", "stream_options", "temperature", "text", "tool_choice", "top_logprobs", "top_p",
	"truncation", "user")

// inputFields are the fields of all endpoints that bring in input from elsewhere:
// MaxInput stands in for it.
var inputFields = set("web_search_options", "previous_response_id", "conversation", "prompt", "container",
	"mcp_servers", "thread")

// hostedTools are the beginnings of the types of tools that bring in input from
// elsewhere, in both APIs. Anthropic's end in a date. Not among them is what
// asks another model (advisor), whose output the request does not bound.
var hostedTools = []string{"web_search", "web_fetch", "file_search", "code_interpreter", "code_execution",
	"image_generation", "mcp", "computer", "browser_toolset", "shell", "namespace", "tool_search",
	"programmatic_tool_calling"}

// textParts are the types of parts that hold their text.
var textParts = set("text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text")

// textItems are the types of input items that hold their text, in content,
// output or other fields. Calls of hosted tools are not among them: the API
// knows more of them than the request says.
var textItems = set("message", "function_call", "function_call_output", "custom_tool_call",
	"custom_tool_call_output", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
	"apply_patch_call", "apply_patch_call_output")

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// quotable makes a name from a request fit for a message and a log.
func quotable(s string) string {
	clean := strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.' {
			return c
		}
		return -1
	}, s[:min(len(s), 40)])
	return clean
}

// hosted notes models that search the web without being asked.
func (r *reader) hosted() {
	if strings.Contains(r.model, "search") {
		r.mark("a model that searches")
	}
}

func (r *reader) chat() {
	r.top, _ = r.object(func(name string) {
		switch name {
		case "model":
			r.readModel()
			r.hosted()
		case "max_tokens", "max_completion_tokens":
			r.bound(name, 1)
		case "n":
			r.readN()
		case "stream":
			r.stream = r.truth(name)
		case "stream_options":
			r.readStreamOptions()
		case "messages":
			r.array(r.chatMessage)
		case "tools":
			r.tools(openaiTools, openaiClientTools)
		case "service_tier":
			r.tier(name, "auto", "default", "flex")
		case "modalities":
			r.array(func() {
				if modality := r.text(); modality != "text" {
					r.mark("a modality other than text")
					r.addTier(name, modality)
				}
			})
		case "audio": // the voice; modalities say whether it speaks
			r.skip()
		case "prediction":
			v, _ := r.value()
			if v.Kind() != 'n' {
				r.mark(name)
				r.predictionBytes = int64(len(v))
			}
		default:
			r.other(name, chatFields)
		}
	})
}

// other reads a field whose value means nothing here.
func (r *reader) other(name string, known map[string]bool) {
	switch present := r.present(); {
	case known[name] || !present:
	case inputFields[name]:
		r.mark("the field " + name)
	default:
		r.suspect("the field", name)
	}
}

// readN reads how many choices are asked for; each has the whole bound.
func (r *reader) readN() {
	if r.dec.PeekKind() == 'n' {
		r.skip()
		return
	}
	r.choices = r.count("n", 1)
}

func (r *reader) readStreamOptions() {
	if r.dec.PeekKind() != '{' {
		v, at := r.value()
		if v.Kind() != 'n' {
			panic(refuse(ReasonMalformed, "stream_options is no object"))
		}
		r.nullStreamOptions = at
		return
	}
	r.streamOptions, _ = r.object(func(name string) {
		if name != "include_usage" {
			r.skip()
			return
		}
		switch v, at := r.value(); v.Kind() {
		case 't':
			r.usageAsked = true
		case 'f', 'n':
			r.includeUsage = at
		default:
			panic(refuse(ReasonMalformed, "include_usage is neither true nor false"))
		}
	})
}

func (r *reader) chatMessage() {
	r.object(func(name string) {
		switch name {
		case "content":
			r.content()
		case "audio": // an earlier answer by its id
			r.markPresent("earlier audio")
		default: // role, name, refusal, tool_calls, function_call, tool_call_id
			r.skip()
		}
	})
}

// content reads text, or a list of parts.
func (r *reader) content() {
	switch r.dec.PeekKind() {
	case '"', 'n':
		r.skip()
	case '[':
		r.array(r.part)
	default:
		r.skip()
		r.mark("content that is neither text nor a list")
	}
}

// part reads one part of a content. Images cost what their size in pixels says,
// however few bytes they have; files hold text that may be compressed.
func (r *reader) part() {
	var kind string
	var bytes int64
	r.object(func(name string) {
		switch name {
		case "type":
			kind = r.kind()
		case "image_url", "file", "input_audio":
			if r.dec.PeekKind() == '"' {
				bytes += r.media()
				return
			}
			r.object(func(name string) {
				switch name {
				case "url", "file_data", "data":
					bytes += r.media()
				default:
					r.skip()
				}
			})
		case "file_data":
			bytes += r.media()
		default:
			r.skip()
		}
	})
	if textParts[kind] {
		return
	}
	r.mark("content of type " + quotable(kind))
	r.mediaBytes += bytes
	if kind == "input_audio" {
		r.addTier("content", "audio") // dearer than text
	}
}

// tools marks those that run at the API: what they put into the context is not
// in the request. client are the beginnings of the types that run at the client
// and that the API describes to the model itself; plain ones bring their own
// description.
func (r *reader) tools(plain map[string]bool, client []string) {
	any := false
	r.array(func() {
		var kind string
		r.object(func(name string) {
			if name == "type" {
				kind = r.kind()
				return
			}
			r.skip()
		})
		any = true
		begins := func(prefix string) bool { return strings.HasPrefix(kind, prefix) }
		switch {
		case plain[kind]:
		case slices.ContainsFunc(client, begins):
			r.describedTools++
		case slices.ContainsFunc(hostedTools, begins):
			r.mark("a tool of type " + quotable(kind))
		default:
			r.suspect("a tool of type", kind)
		}
	})
	if any {
		r.describedTools++
	}
}

// openaiTools are the plain tools of both endpoints, and the other tools of
// responses that run at the client.
var (
	openaiTools       = set("function", "custom")
	openaiClientTools = []string{"local_shell", "apply_patch"}
)

func (r *reader) responses() {
	r.top, _ = r.object(func(name string) {
		switch name {
		case "model":
			r.readModel()
			r.hosted()
		case "max_output_tokens":
			r.bound(name, 1)
		case "stream":
			r.stream = r.truth(name)
		case "background":
			r.background = r.truth(name)
		case "input":
			r.input()
		case "tools":
			r.tools(openaiTools, openaiClientTools)
		case "service_tier":
			r.tier(name, "auto", "default", "flex")
		default:
			r.other(name, responsesFields)
		}
	})
}

func (r *reader) input() {
	switch r.dec.PeekKind() {
	case '"', 'n':
		r.skip()
	case '[':
		r.array(r.item)
	default:
		r.skip()
		r.mark("input that is neither text nor a list")
	}
}

// item reads one item of the input. Without a type it is a message if it has a
// role, and otherwise a reference to an item that the API has stored.
func (r *reader) item() {
	var kind string
	var role, typed, carried bool
	r.object(func(name string) {
		switch name {
		case "type":
			typed = r.dec.PeekKind() != 'n'
			kind = r.kind()
		case "role":
			role = r.present()
		case "content":
			carried = carried || r.dec.PeekKind() != 'n'
			r.content()
		case "output":
			r.output()
		case "encrypted_content":
			carried = r.present() || carried
		default:
			r.skip()
		}
	})
	switch {
	case !typed && role:
	case kind == "reasoning" && carried:
	case textItems[kind]:
	default:
		r.mark("input of type " + quotable(kind))
	}
}

// output reads what a tool has returned: text, parts, or (of a shell) objects
// that hold text.
func (r *reader) output() {
	if r.dec.PeekKind() != '[' {
		r.skip()
		return
	}
	r.array(func() {
		var kind string
		var shell bool
		r.object(func(name string) {
			switch name {
			case "type":
				kind = r.kind()
			case "stdout", "stderr":
				shell = true
				r.skip()
			default:
				r.skip()
			}
		})
		if !textParts[kind] && !(kind == "" && shell) {
			r.mark("output of type " + quotable(kind))
		}
	})
}
