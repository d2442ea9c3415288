package llm

import (
	"net/http"
	"reflect"
	"testing"
	"time"
)

func TestErrorBody(t *testing.T) {
	for _, row := range []struct {
		api           API
		status        int
		code, message string
		want          string
	}{
		{OpenAI, 429, "limit", "try again in 5 s",
			`{"error":{"message":"try again in 5 s","type":"tokens","param":null,"code":"rate_limit_exceeded"}}`},
		{OpenAI, 400, "unbounded", `a "tool"`,
			`{"error":{"message":"a \"tool\"","type":"invalid_request_error","param":null,"code":"unbounded"}}`},
		{OpenAI, 503, "store_away", "later",
			`{"error":{"message":"later","type":"server_error","param":null,"code":"store_away"}}`},
		{Anthropic, 429, "limit", "later",
			`{"type":"error","error":{"type":"rate_limit_error","message":"later","details":{"error_code":"limit"}},"request_id":null}`},
		{Anthropic, 400, "unbounded", "no",
			`{"type":"error","error":{"type":"invalid_request_error","message":"no","details":{"error_code":"unbounded"}},"request_id":null}`},
		{Anthropic, 503, "store_away", "later",
			`{"type":"error","error":{"type":"overloaded_error","message":"later","details":{"error_code":"store_away"}},"request_id":null}`},
	} {
		if got := string(ErrorBody(row.api, row.status, row.code, row.message)); got != row.want {
			t.Errorf("ErrorBody(%s, %d, %s) =\n%s, want\n%s", row.api, row.status, row.code, got, row.want)
		}
	}
}

func TestSetRetry(t *testing.T) {
	for _, row := range []struct {
		wait time.Duration
		want http.Header
	}{
		{1500*time.Millisecond + 1, http.Header{"Retry-After": {"2"}, "Retry-After-Ms": {"1501"}}},
		{time.Minute, http.Header{"Retry-After": {"60"}, "Retry-After-Ms": {"60000"}}},
		{time.Minute + 1, http.Header{"Retry-After": {"61"}, "Retry-After-Ms": {"60001"}, "X-Should-Retry": {"false"}}},
		{0, http.Header{"X-Should-Retry": {"false"}}},
	} {
		header := http.Header{"Retry-After": {"9"}, "X-Should-Retry": {"true"}}
		SetRetry(header, row.wait)
		if !reflect.DeepEqual(header, row.want) {
			t.Errorf("SetRetry(%s) wrote %v, want %v", row.wait, header, row.want)
		}
	}
}
