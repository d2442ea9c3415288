package llmtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Behaviour is how the server treats one request. It is written as a list of
// name=value, parted by commas, in [Header] or after the model's name: the model
// "gpt-5:output=9,crlf" is gpt-5. The header is read first.
type Behaviour struct {
	Input     int // input=9: tokens of the prompt that come from no cache; else a token for four bytes
	Cached    int // cached=9: tokens read from a cache, beside the input
	Written   int // written=9: tokens written to a cache, beside the input
	Written1h int // written1h=9: such that are kept for an hour, and cost more (Anthropic)
	Output    int // output=9: what it says if nothing bounds it; 20
	Reasoning int // reasoning=9: how much of the output was thought
	Events    int // events=9: the events of a stream that carry text; 4

	Wait  time.Duration // wait=1s: before the response's header
	Every time.Duration // every=1s: between the events of a stream

	Status       int    // status=429: an error in the API's own shape
	RetryAfter   string // retry-after=1: header of it
	RetryAfterMs string // retry-after-ms=250: header of it
	ShouldRetry  string // should-retry=false: the header x-should-retry of it
	Times        int    // times=1: errors for the first so many attempts of the official clients only

	Usage    string // usage=none: it tells none; usage=error: an error status tells what it cost
	Break    string // break=head, hang, cut, reset, stall, error: see the constants
	Gzip     string // gzip=asked: encodes what a client accepts so; gzip=always: whatever it accepts
	CRLF     bool   // crlf: lines of a stream end in CR LF
	Split    int    // split=1: a stream is written so many bytes at a time
	Huge     int    // huge=9: bytes that one event, or the body, is longer
	Tricky   bool   // tricky: the text looks like events and like usage
	Hints    bool   // hints: an informational response comes first
	After    int    // after=1: how many more events are generated and billed when a client has hung up; else all
	Answered string // answered=gpt-5-pro: the model that answers is another one
}

// What can break.
const (
	breakHead  = "head"  // the connection ends before the response
	breakHang  = "hang"  // no response, until the client goes away
	breakCut   = "cut"   // the connection ends midway
	breakReset = "reset" // the same, and the client's side learns it by a reset
	breakStall = "stall" // nothing more midway, until the client goes away
	breakError = "error" // an event midway tells of an error, and ends the stream
)

// parseBehaviour reads a list of name=value.
func parseBehaviour(list string) (Behaviour, error) {
	b := Behaviour{Input: -1, Output: 20, Events: 4, After: -1}
	return b, b.parse(list)
}

func (b *Behaviour) parse(list string) error {
	for item := range strings.SplitSeq(list, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		if name == "" {
			continue
		}
		if err := b.set(name, value); err != nil {
			return fmt.Errorf("behaviour %q: %v", item, err)
		}
	}
	return nil
}

func (b *Behaviour) set(name, value string) (err error) {
	numbers := map[string]*int{
		"input": &b.Input, "cached": &b.Cached, "written": &b.Written, "written1h": &b.Written1h, "output": &b.Output,
		"reasoning": &b.Reasoning, "events": &b.Events, "status": &b.Status, "times": &b.Times, "split": &b.Split,
		"huge": &b.Huge, "after": &b.After,
	}
	times := map[string]*time.Duration{"wait": &b.Wait, "every": &b.Every}
	words := map[string]*string{
		"retry-after": &b.RetryAfter, "retry-after-ms": &b.RetryAfterMs, "should-retry": &b.ShouldRetry,
		"usage": &b.Usage, "break": &b.Break, "gzip": &b.Gzip, "answered": &b.Answered,
	}
	switches := map[string]*bool{"crlf": &b.CRLF, "tricky": &b.Tricky, "hints": &b.Hints}
	switch {
	case numbers[name] != nil:
		*numbers[name], err = strconv.Atoi(value)
	case times[name] != nil:
		*times[name], err = time.ParseDuration(value)
	case words[name] != nil:
		*words[name] = value
	case switches[name] != nil:
		*switches[name] = true
	default:
		err = fmt.Errorf("there is no such name")
	}
	return err
}
