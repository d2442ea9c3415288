package body_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/body"
)

// A handler that looks at a field of the body, and hands the request on untouched.
func Example() {
	field, err := body.ParseField("json.user.name")
	if err != nil {
		panic(err)
	}
	limits := body.Limits{Bytes: 64 << 10, Timeout: 10 * time.Second, Memory: body.NewMemory(256 << 20)}

	next := func(_ http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body)
		fmt.Printf("the next handler reads %s\n", all)
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		b, err := body.Open(w, r, limits)
		if err != nil {
			http.Error(w, "send it again", http.StatusRequestTimeout)
			return
		}
		defer b.Release()
		if name, outcome := b.Value(field); outcome == body.Found {
			fmt.Println("the user is", name)
		}
		next(w, r)
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"user":{"name":"alice"}}`))
	r.Header.Set("Content-Type", "application/json")
	handler(httptest.NewRecorder(), r)
	// Output:
	// the user is alice
	// the next handler reads {"user":{"name":"alice"}}
}
