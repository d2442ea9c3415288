package llm

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
)

// openaiError is the body of OpenAI's errors. The SDKs show message, and hand
// code, param and type to the program.
type openaiError struct {
	Error struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	} `json:"error"`
}

// anthropicError is the body of Anthropic's errors. The SDKs hand error.type and
// error.details.error_code to the program, which must take a code that it does
// not know for none.
type anthropicError struct {
	Type  string `json:"type"`
	Error struct {
		Type    string `json:"type"`
		Message string `json:"message"`
		Details struct {
			Code string `json:"error_code"`
		} `json:"details"`
	} `json:"error"`
	RequestID *string `json:"request_id"`
}

// ErrorBody is the body of a response with an error status, as the API itself
// would write it (application/json). The code is for programs, such as a
// [Reason]. An exceeded limit is 429 with the code "limit", which becomes
// OpenAI's own "rate_limit_exceeded".
func ErrorBody(api API, status int, code, message string) []byte {
	var body []byte
	var err error
	if api == Anthropic {
		var e anthropicError
		e.Type, e.Error.Type, e.Error.Message = "error", anthropicType(status), message
		e.Error.Details.Code = code
		body, err = json.Marshal(e)
	} else {
		var e openaiError
		e.Error.Message, e.Error.Type, e.Error.Code = message, openaiType(status), code
		if status == http.StatusTooManyRequests && code == "limit" {
			e.Error.Code = "rate_limit_exceeded"
		}
		body, err = json.Marshal(e)
	}
	if err != nil {
		panic(err) // strings only
	}
	return body
}

func openaiType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "tokens" // what was exceeded; OpenAI's other one is "requests"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

func anthropicType(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	}
	if status >= 500 {
		return "api_error"
	}
	return "invalid_request_error"
}

// longWait is the longest that SDKs are told to wait for. Above it they are told
// not to retry: some ignore what is longer and retry at once, others sleep for
// hours within a call that the program expects to return.
const longWait = 60 * time.Second

// SetRetry writes the headers that say when a refused request may be sent again:
// Retry-After in seconds and retry-after-ms, both rounded up, or no such time
// where waiting does not help (wait of zero or less). x-should-retry is "false"
// where SDKs are not to wait themselves.
func SetRetry(header http.Header, wait time.Duration) {
	header.Del("Retry-After")
	header.Del("Retry-After-Ms")
	header.Del("X-Should-Retry")
	if wait > 0 {
		header.Set("Retry-After", strconv.FormatInt(ceil(wait, time.Second), 10))
		header.Set("Retry-After-Ms", strconv.FormatInt(ceil(wait, time.Millisecond), 10))
	}
	if wait <= 0 || wait > longWait {
		header.Set("X-Should-Retry", "false")
	}
}

// ceil divides and rounds up.
func ceil(d, unit time.Duration) int64 {
	n := int64(d / unit)
	if d%unit > 0 {
		n++
	}
	return n
}
