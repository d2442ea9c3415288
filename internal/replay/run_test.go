package replay

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// byAddress is an evaluator with one zone, which all requests to a host meet.
type byAddress struct {
	zone  Zone
	limit int64
	host  string
}

func limitOf(limit int64, window time.Duration) *byAddress {
	return &byAddress{Zone{Name: "ip", StoreName: "ip", Limit: "some", Key: "the address", Window: window, Show: func(key string) string { return key }}, limit, "a.example"}
}

func (b *byAddress) Zones() []Zone     { return []Zone{b.zone} }
func (b *byAddress) NewWorker() Worker { return b }
func (b *byAddress) Gather(line *Line, parts []Part) []Part {
	if string(line.Host) != b.host && len(line.Host) > 0 {
		return parts
	}
	kind := Counts
	if b.zone.Concurrent {
		kind = Holds
	}
	return append(parts, Part{Kind: kind, Client: string(line.RemoteIP), Limit: b.limit, Units: 1, Back: line.Status == 401})
}

// second is a line of a request that was done a number of seconds after a moment.
func second(n float64, client string) string { return took(n, 0, client, 200) }

func took(end, duration float64, client string, status int) string {
	return fmt.Sprintf(`{"ts":%.6f,"request":{"remote_ip":"%s","method":"GET","host":"a.example","uri":"/"},"duration":%.6f,"status":%d}`+"\n",
		1_764_000_000+end, client, duration, status)
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, e Evaluator, o Options) *Result {
	t.Helper()
	r, err := Run(e, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// text replays a log from standard input.
func text(t *testing.T, e Evaluator, log string) *Result {
	t.Helper()
	return run(t, e, Options{Files: []string{StandardInput}, Stdin: strings.NewReader(log), Windows: testWindows})
}

func refusedOf(t *testing.T, r *Result, requests, refused int64) {
	t.Helper()
	if z := r.Zones[0]; z.Requests != requests || z.Refused != refused {
		t.Errorf("%d of %d requests are refused, want %d of %d", z.Refused, z.Requests, refused, requests)
	}
}

// The window slides with the time of the log.
func TestSliding(t *testing.T) {
	log := second(0, "A") + second(9, "A") + second(9.5, "A") + second(10, "A") + second(18.9, "A") + second(19, "A") + second(19.1, "B")
	refusedOf(t, text(t, limitOf(2, 10*time.Second), log), 7, 2)
}

// Requests count from when they came, not from when they were done.
func TestOrderOfArrival(t *testing.T) {
	log := second(1, "A") + took(3, 2.5, "A", 200) + second(10.2, "A") + second(10.7, "A")
	// They came at 0.5, 1, 10.2 and 10.7: at 10.2 two count still, at 10.7 one.
	refusedOf(t, text(t, limitOf(2, 10*time.Second), log), 4, 1)
}

// Units of a response that does not count are free again when it is done.
func TestCountedResponses(t *testing.T) {
	log := took(1, 1, "A", 401) + took(1.2, 0.5, "A", 200) + took(2, 0.5, "A", 200) + took(3, 0.5, "A", 200)
	r := text(t, limitOf(1, time.Minute), log)
	refusedOf(t, r, 4, 2) // while the first was pending, and after the third
	r.Suggest([]float64{1})
	if got := r.Zones[0].Curves[2].Limits[0].Limit; got != 3 {
		t.Errorf("the client took %d units at most, want 3", got)
	}
}

func TestRequestsInFlight(t *testing.T) {
	e := limitOf(2, 0)
	e.zone.Concurrent = true
	log := took(3, 2, "A", 200) + took(3.5, 1, "A", 200) + took(3.6, 0.9, "A", 200) + took(5, 1, "A", 200) + took(10, 8.5, "A", 200)
	// In the order of arrival: 1 to 3, 1.5 to 10, 2.5 and 2.7 find no slot, 4 to 5.
	r := text(t, e, log)
	refusedOf(t, r, 5, 2)
	r.Suggest([]float64{1})
	if got := r.Zones[0].Curves[0].Limits[0].Limit; got != 4 {
		t.Errorf("%d were in flight at most, want 4", got)
	}
}

// The same requests in all forms and packings.
func TestForms(t *testing.T) {
	var plain, combined strings.Builder
	for i := range 1000 {
		plain.WriteString(second(float64(i), fmt.Sprint(i%7)))
		at := time.Unix(1_764_000_000+int64(i), 0).UTC()
		fmt.Fprintf(&combined, "%d - - [%s] \"GET / HTTP/1.1\" 200 5 \"-\" \"x\"\r\n", i%7, at.Format("02/Jan/2006:15:04:05 -0700"))
	}
	var zipped, packed bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write([]byte(plain.String()))
	z.Close()
	p, _ := zstd.NewWriter(&packed)
	p.Write([]byte(plain.String()))
	p.Close()
	forms := map[string]string{
		"JSON": plain.String(), "combined": combined.String(), "gzip": zipped.String(), "zstd": packed.String(),
		"two gzip files in one":   zipped.String() + zipped.String()[:0],
		"no end of the last line": strings.TrimSuffix(plain.String(), "\n"),
		"empty lines":             strings.ReplaceAll(plain.String(), "\n", "\n\n"),
	}
	for name, log := range forms {
		r := text(t, limitOf(5, time.Minute), log)
		if r.Requests != 1000 || r.Zones[0].Clients != 7 || r.Broken != 0 || r.Zones[0].Refused == 0 {
			t.Errorf("%s: %d requests of %d clients, %d refused, %d lines broken", name, r.Requests, r.Zones[0].Clients, r.Zones[0].Refused, r.Broken)
		}
		refusedOf(t, r, 1000, text(t, limitOf(5, time.Minute), plain.String()).Zones[0].Refused)
		// The same from a file.
		refusedOf(t, run(t, limitOf(5, time.Minute), Options{Files: []string{write(t, "log", log)}}), 1000, r.Zones[0].Refused)
	}
}

// What is not readable is left out and counted, and does not end the replay.
func TestBrokenLines(t *testing.T) {
	long := `{"ts":1,"x":"` + strings.Repeat("a", 9<<20) + `"}` + "\n"
	log := second(0, "A") + "garbage\n" + "\x00\x01\x02\n" + long + second(1, "A") + `{"msg":"other"}` + "\n" + second(2, "A")[:60]
	r := text(t, limitOf(1, time.Minute), log)
	refusedOf(t, r, 2, 1)
	if r.Broken != 3 || r.Long != 1 || r.Other != 1 || len(r.Notes) != 2 {
		t.Errorf("%d lines broken, %d too long, %d others, notes %q", r.Broken, r.Long, r.Other, r.Notes)
	}
	// A packed file that is cut off counts as far as it can be read.
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	for i := range 20_000 {
		z.Write([]byte(second(float64(i), fmt.Sprint(i))))
	}
	z.Close()
	r = text(t, limitOf(1, time.Minute), zipped.String()[:zipped.Len()/2])
	if r.Requests < 2_000 || r.Requests > 18_000 || !strings.Contains(strings.Join(r.Notes, ""), "ended early") {
		t.Errorf("%d requests, notes %q", r.Requests, r.Notes)
	}
}

// Time that goes backwards within a log: by a little it does no harm, by much it is said.
func TestTimeGoesBackwards(t *testing.T) {
	refusedOf(t, text(t, limitOf(2, 10*time.Second), second(40, "A")+second(20, "A")+second(30.1, "A")+second(21, "A")), 4, 0)
	r := text(t, limitOf(1, 10*time.Second), second(400, "A")+second(20, "A")+second(401, "A"))
	if r.Backwards != 1 || len(r.Notes) != 1 {
		t.Errorf("%d went backwards, notes %q", r.Backwards, r.Notes)
	}
	refusedOf(t, r, 2, 1)
	// Files may be in any order, and may overlap.
	one, two := "", ""
	for i := range 2000 {
		one += second(float64(i)*10, "A")
		two += second(float64(i)*10+15_005, "A")
	}
	r = run(t, limitOf(1, 6*time.Second), Options{Files: []string{write(t, "new", two), write(t, "old", one)}})
	if r.Backwards != 0 {
		t.Errorf("%d went backwards", r.Backwards)
	}
	refusedOf(t, r, 4000, 500) // where they overlap, one comes each 5 s
}

// A request that lasted for longer than others are kept waiting is decided late, and said
// to be.
func TestLongRequests(t *testing.T) {
	log := second(1, "A") + second(500, "A") + took(1000, 999, "A", 200)
	if r := text(t, limitOf(1, 10*time.Second), log); r.Late != 1 {
		t.Errorf("%d were late", r.Late)
	}
}

func TestProblems(t *testing.T) {
	other := strings.ReplaceAll(second(1, "A"), "a.example", "b.example\x1b")
	other = strings.ReplaceAll(other, "\x1b", `\u001b`)
	for _, tt := range []struct{ log, want string }{
		{"", "the log is empty"},
		{"garbage\n{\"a\":1}\n", "none of 2 lines is a request: 1 are of other loggers and 1 cannot be read"},
		{other, "The log has the hosts b.example?;"},
	} {
		if err := text(t, limitOf(1, time.Minute), tt.log).Problem(nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
	for _, files := range [][]string{nil, {"-", "-"}, {"/does/not/exist"}, {os.TempDir()}} {
		if _, err := Run(limitOf(1, time.Minute), Options{Files: files}); err == nil {
			t.Errorf("files %q: no error", files)
		}
	}
}

// Clients beyond the bound are counted, though not by themselves.
func TestManyClients(t *testing.T) {
	log := ""
	for i := range 100 {
		log += second(float64(i), fmt.Sprint(i))
	}
	r := run(t, limitOf(1, time.Minute), Options{Files: []string{"-"}, Stdin: strings.NewReader(log), MaxClients: 40})
	if z := r.Zones[0]; z.Requests != 100 || z.Clients != 40 || z.Others != 60 || len(r.Notes) != 1 {
		t.Errorf("%d requests, %d clients, %d of others, notes %q", z.Requests, z.Clients, z.Others, r.Notes)
	}
}
