package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
)

// Each call in docs/admin-api.md that is shown with its answer, sent by curl to a real
// Caddy with a real Redis, gets an answer like that: the same fields, texts and words;
// numbers differ.
func TestAdminAPIPage(t *testing.T) {
	const path = "../../docs/admin-api.md"
	redis := redistest.Start(t)
	config := fenced(t, path)[0]
	config = strings.Replace(config, "{\n", "{\n\tadmin ADMIN\n\tservers {\n\t\ttrusted_proxies static 127.0.0.1/32\n\t}\n", 1)
	config = strings.Replace(config, "store redis {env.REDIS_URL}", "store redis {env.REDIS_URL}\n\t\tbudget 10s", 1)
	p := startProcess(t, strings.Replace(config, ":8080 {", "ADDR {", 1), redisEnv(redis))

	// A client that has tried to log in too often.
	for i := range 7 {
		r, err := http.NewRequest(http.MethodPost, "http://"+p.addr+"/login", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Forwarded-For", "192.0.2.7")
		response, err := p.client.Do(r)
		if err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
		response.Body.Close()
	}

	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```\n(?:\n```json\n(.*?)^```)?").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 4 {
		t.Fatalf("the page shows %d calls", len(blocks))
	}
	ports := strings.NewReplacer("localhost:2019", p.admin, "localhost:8080", p.addr)
	for _, block := range blocks {
		var why string
		// The first answers may come before the first heartbeat has told of the store.
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			out, err := exec.Command("sh", "-c", ports.Replace(block[1])).CombinedOutput()
			if err != nil {
				t.Fatalf("%s%v\n%s", block[1], err, out)
			}
			why = unlikeAnswer(block[2], string(out))
			if why == "" || time.Now().After(deadline) {
				break
			}
		}
		if why != "" {
			t.Errorf("%s%s", block[1], why)
		}
	}
}

// unlikeAnswer tells how an answer is unlike the one on a page, which may be none.
func unlikeAnswer(page, answer string) string {
	var shown, got any
	if err := json.Unmarshal([]byte(answer), &got); err != nil {
		return fmt.Sprintf("%v: %s", err, answer)
	}
	if page == "" {
		return ""
	}
	if err := json.Unmarshal([]byte(page), &shown); err != nil {
		return fmt.Sprintf("the page: %v", err)
	}
	if a, b := likeness(shown), likeness(got); !reflect.DeepEqual(a, b) {
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return fmt.Sprintf("got  %s\npage %s", y, x)
	}
	return ""
}

var anyNumber = regexp.MustCompile(`[0-9]+`)

// likeness is a value without what differs from one run to another.
func likeness(v any) any {
	switch v := v.(type) {
	case float64:
		return 0
	case string:
		if _, err := time.Parse(time.RFC3339, v); err == nil {
			return "a moment"
		}
		v = strings.TrimPrefix(v, "127.0.0.1:") // where servers listen
		return anyNumber.ReplaceAllString(strings.TrimPrefix(v, ":"), "0")
	case []any:
		for i := range v {
			v[i] = likeness(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = likeness(v[name])
		}
	}
	return v
}
