package replay

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

func reportOf(t *testing.T, r *Result) string {
	t.Helper()
	r.Suggest([]float64{0.5, 1})
	var b bytes.Buffer
	if err := r.WriteReport(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What a client has written does nothing in the report, and the report asks for nothing
// from elsewhere.
func TestReportEscapes(t *testing.T) {
	const evil = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`
	log := ""
	for i := range 4 {
		log += strings.ReplaceAll(second(float64(i), "EVIL"), "EVIL", strings.ReplaceAll(evil, `"`, `\"`))
	}
	e := limitOf(1, time.Minute)
	e.zone.Key, e.zone.Notes = evil, []string{evil}
	out := reportOf(t, text(t, e, log))
	if strings.Contains(out, "<script") || strings.Contains(out, "<img") || !strings.Contains(out, "&lt;script&gt;alert(1)") {
		t.Errorf("it is not escaped:\n%s", out)
	}
	if found := regexp.MustCompile(`(?i)https?:|url\(|src=x o|href=|@import`).FindString(strings.ReplaceAll(out, "src=x onerror", "")); found != "" {
		t.Errorf("the report refers to something: %s", found)
	}
}

// The report is well-formed, with whatever there is to show.
func TestReportForms(t *testing.T) {
	slots := limitOf(1, 0)
	slots.zone.Concurrent = true
	unknown := limitOf(1, time.Minute)
	unknown.zone.Unknown = "nobody knows"
	long := ""
	for i := range 300 {
		long += second(float64(i)*40_000, fmt.Sprint(i%70))
	}
	for name, r := range map[string]*Result{
		"one request": text(t, limitOf(1, time.Minute), second(1, "A")),
		"nothing":     text(t, limitOf(1, time.Minute), ""),
		"in flight":   text(t, slots, took(9, 3, "A", 200)+took(10, 4, "A", 200)),
		"unknown":     text(t, unknown, second(1, "A")),
		"months":      text(t, limitOf(1, 5*time.Minute), long),
	} {
		out := reportOf(t, r)
		if strings.Contains(out, "NaN") || strings.Contains(out, "Inf") || strings.Contains(out, "ZgotmplZ") {
			t.Errorf("%s: it holds what is no number:\n%s", name, out)
		}
		d := xml.NewDecoder(strings.NewReader(strings.ReplaceAll(out, "&nbsp;", " ")))
		d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

// Buckets hold all requests, and are few enough for a plot.
func TestBuckets(t *testing.T) {
	for _, step := range []float64{1, 100, 7_000, 400_000} {
		log := ""
		for i := range 1000 {
			log += second(float64(i)*step, "A")
		}
		buckets := text(t, limitOf(1, time.Minute), log).Zones[0].buckets
		sum := int64(0)
		for _, b := range buckets {
			sum += b.Requests
		}
		if sum != 1000 || len(buckets) > maxBuckets {
			t.Errorf("a request each %v s: %d requests in %d buckets", step, sum, len(buckets))
		}
	}
}

func TestSuggest(t *testing.T) {
	c := Curve{most: []int64{1, 1, 1, 2, 2, 3, 4, 9, 10, 1000}}
	for share, want := range map[float64]int64{0.01: 1, 0.3: 1, 0.31: 2, 0.5: 2, 0.9: 10, 0.91: 1000, 0.999: 1000, 1: 1000} {
		if got := c.limit(share); got != want {
			t.Errorf("%v: %d, want %d", share, got, want)
		}
		if c.share(c.limit(share)) < share || c.limit(share) > 1 && c.share(c.limit(share)-1) >= share {
			t.Errorf("%v: %d is not the least limit", share, c.limit(share))
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"a\x1b[2Jb\nc": "a?[2Jb?c", "über": "über", "\xff": "?", strings.Repeat("x", 200): strings.Repeat("x", maxPrinted) + "..."} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
