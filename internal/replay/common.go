package replay

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// parseCommon reads a line in the common log format, or in the combined one, which has
// the headers Referer and User-Agent as well:
//
//	192.0.2.7 - alice [10/Oct/2026:13:55:36 -0700] "GET /a HTTP/1.1" 200 2326 "referer" "agent"
//
// It says when the request was done, to the second, and names no host.
func (l *Line) parseCommon(line []byte) kind {
	// In front of the time stands a name that a client may have made up, with brackets
	// and spaces in it; servers escape quotes and tabs. Columns with tabs between them
	// are Caddy's console format.
	end := bytes.Index(line, []byte(`] "`))
	if end < 0 {
		return kindBroken
	}
	open := bytes.LastIndexByte(line[:end], '[')
	if open < 0 || bytes.IndexByte(line[:open], '\t') >= 0 {
		return kindBroken
	}
	words := bytes.Fields(line[:open])
	if len(words) < 3 {
		return kindBroken
	}
	when, ok := parseTimeText(string(line[open+1 : end]))
	if !ok {
		return kindBroken
	}
	rest := line[end+1:]
	request, rest, ok := quoted(rest)
	if !ok {
		return kindBroken
	}
	words[0], words[2] = bytes.Clone(words[0]), bytes.Clone(words[2])
	l.RemoteIP, l.RemotePort, l.ClientIP = words[0], []byte("0"), words[0]
	if string(words[2]) != "-" {
		l.UserID = words[2]
	}
	line3 := bytes.Fields(request)
	if len(line3) < 2 {
		return kindOther // the client sent something else
	}
	l.Method, l.URI, l.Proto = line3[0], line3[1], []byte("HTTP/1.1")
	if len(line3) > 2 {
		l.Proto = line3[2]
	}
	numbers := bytes.Fields(rest)
	if len(numbers) == 0 {
		return kindBroken
	}
	status, err := strconv.ParseUint(string(numbers[0]), 10, 16)
	if err != nil {
		return kindBroken
	}
	l.Status, l.Common = int64(status), true
	l.setTimes(when, 0, 0)
	l.combined(rest)
	return kindRequest
}

// combined reads the two headers.
func (l *Line) combined(rest []byte) {
	referer, rest, ok := quoted(rest)
	if !ok {
		return
	}
	agent, _, _ := quoted(rest)
	headers := make(map[string][]string, 2)
	if len(referer) > 0 && string(referer) != "-" {
		headers["Referer"] = []string{string(referer)}
	}
	if len(agent) > 0 && string(agent) != "-" {
		headers["User-Agent"] = []string{string(agent)}
	}
	l.Headers, _ = json.Marshal(headers)
}

// quoted reads the next text in quotes, and returns what follows it.
func quoted(line []byte) (text, rest []byte, ok bool) {
	start := bytes.IndexByte(line, '"')
	if start < 0 {
		return nil, nil, false
	}
	escaped := false
	for i := start + 1; i < len(line); i++ {
		switch line[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			text = line[start+1 : i]
			if escaped {
				text = unquoted(text)
			}
			return text, line[i+1:], true
		}
	}
	return nil, nil, false
}

// unquoted takes one backslash in front of each quote and backslash away.
func unquoted(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\') {
			i++
		}
		out = append(out, text[i])
	}
	return out
}

// EachHeader calls do with each header of a JSON object of headers. The texts are valid
// as long as the line. It stops at what is no such object.
func EachHeader(object []byte, wanted func(name []byte) bool, do func(name, value []byte)) {
	s := scanner{data: object}
	if len(object) == 0 {
		return
	}
	s.fields(func(name []byte) bool {
		if s.space() != '[' || !wanted(name) {
			_, ok := s.value()
			return ok
		}
		return s.elements(func() bool {
			if s.space() != '"' {
				_, ok := s.value()
				return ok
			}
			value, ok := s.text()
			if ok {
				do(name, value)
			}
			return ok
		})
	})
}
