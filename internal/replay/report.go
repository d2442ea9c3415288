package replay

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
)

//go:embed report.html
var reportText string

// reportTemplate escapes what strangers wrote. The plots are numbers of ours.
var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"number":     number,
	"int":        func(n int) string { return number(int64(n)) },
	"percent":    percent,
	"percentInt": func(part, whole int) string { return percent(int64(part), int64(whole)) },
	"share":      shareText,
	"time":       func(t time.Time) string { return t.Format(timeFormat) },
	"span":       func(from, to time.Time) string { return span(to.Sub(from)) },
	"ratio":      func(part, whole int64) int64 { return 100 * part / max(whole, 1) },
}).Parse(reportText))

// report is a result with its plots.
type report struct {
	*Result
	Zones  []zoneReport
	Colors [maxCurves]struct{}
}

type zoneReport struct {
	*ZoneResult
	Traffic   *plot
	Shares    *plot
	Suggested []suggested
}

// suggested is a row of the table.
type suggested struct {
	Text   string
	Own    bool // the zone has this window
	Limits []Suggestion
}

// plot is 1000 wide and 200 high, from the top. The labels of the axes are no part of the
// picture, so that they do not shrink on a narrow screen.
type plot struct {
	Y     []label // at so many pixels
	X     []label // at so many percent
	Lines []int   // vertical
	Paths []string
	Names []string // of the paths
}

type label struct {
	At    string
	Text  string
	Class string
}

const (
	plotWidth  = 1000
	plotHeight = 200
	maxCurves  = 8
)

// WriteReport writes the result as one HTML file that needs no other.
func (r *Result) WriteReport(w io.Writer) error {
	view := report{Result: r}
	for i := range r.Zones {
		z := &r.Zones[i]
		zone := zoneReport{ZoneResult: z, Traffic: trafficPlot(z.buckets), Shares: sharesPlot(z.Curves)}
		for _, c := range z.Curves {
			if len(c.Limits) > 0 {
				zone.Suggested = append(zone.Suggested, suggested{c.text(), z.window == time.Duration(c.Window), c.Limits})
			}
		}
		view.Zones = append(view.Zones, zone)
	}
	return reportTemplate.Execute(w, view)
}

func (c *Curve) text() string {
	if c.Window == 0 {
		return "in flight"
	}
	return c.Window.String()
}

// trafficPlot is requests and refusals over time, in a minute each.
func trafficPlot(buckets []Bucket) *plot {
	if len(buckets) == 0 {
		return nil
	}
	most := 0.0
	for _, b := range buckets {
		most = max(most, float64(b.Requests)/float64(b.Minutes))
	}
	top, step := niceScale(most)
	p := &plot{Paths: []string{"", ""}}
	for v := 0.0; v <= top*1.001; v += step {
		p.Y = append(p.Y, label{At: fmt.Sprintf("%.0f", plotHeight*(1-v/top)), Text: short(v)})
	}
	for i, of := range []func(Bucket) int64{func(b Bucket) int64 { return b.Requests }, func(b Bucket) int64 { return b.Refused }} {
		var path strings.Builder
		fmt.Fprintf(&path, "M0 %d", plotHeight)
		for j, b := range buckets {
			y := plotHeight * (1 - float64(of(b))/float64(b.Minutes)/top)
			fmt.Fprintf(&path, "L%.1f %.1fL%.1f %.1f", at(j, len(buckets)), y, at(j+1, len(buckets)), y)
		}
		fmt.Fprintf(&path, "L%d %dZ", plotWidth, plotHeight)
		p.Paths[i] = path.String()
	}
	p.X = timeLabels(buckets)
	return p
}

func at(i, n int) float64 { return plotWidth * float64(i) / float64(n) }

// timeLabels are five moments; on a narrow screen, three of them are shown.
func timeLabels(buckets []Bucket) (labels []label) {
	first := buckets[0].Start
	length := time.Duration(len(buckets)*buckets[0].Minutes) * time.Minute
	layout := "15:04"
	switch {
	case length > 10*24*time.Hour:
		layout = "2 Jan"
	case length > 24*time.Hour:
		layout = "2 Jan 15:04"
	}
	for i := range 5 {
		class := []string{"first", "many", "", "many", "last"}[i]
		labels = append(labels, label{At: fmt.Sprint(i * 25), Text: first.Add(length * time.Duration(i) / 4).Format(layout), Class: class})
	}
	return labels
}

// niceScale is the end of an axis from 0 that holds a number, and the steps on it.
func niceScale(most float64) (top, step float64) {
	most = max(most, 1)
	step = math.Pow(10, math.Floor(math.Log10(most)))
	switch n := most / step; {
	case n <= 1.5:
		step /= 4
	case n <= 3:
		step /= 2
	case n > 6:
		step *= 2
	}
	step = max(step, 1)
	return math.Ceil(most/step) * step, step
}

// short is a number in few characters.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return trimmed(v/1e6) + "M"
	case v >= 1e4:
		return trimmed(v/1e3) + "k"
	}
	return trimmed(v)
}

func trimmed(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

// sharesPlot is which share of the clients would never have noticed a limit. Both axes are
// logarithmic: that of the shares in the clients that do notice, so that the last of them
// have as much room as the first.
func sharesPlot(curves []Curve) *plot {
	curves = curves[:min(len(curves), maxCurves)]
	clients, most := 0, int64(1)
	for _, c := range curves {
		if n := len(c.most); n > 0 {
			clients, most = n, max(most, c.most[n-1])
		}
	}
	if clients == 0 {
		return nil
	}
	p := new(plot)
	decades := min(max(math.Ceil(math.Log10(float64(clients))), 1), 5)
	y := func(share float64) float64 {
		if share >= 1 {
			return 0
		}
		// One more is for all clients.
		return plotHeight * (1 - min(-math.Log10(1-share), decades)/(decades+0.5))
	}
	p.Y = append(p.Y, label{At: "0", Text: "all"}, label{At: fmt.Sprint(plotHeight), Text: "0 %"})
	for d := 1.0; d <= decades; d++ {
		share := 1 - math.Pow(10, -d)
		p.Y = append(p.Y, label{At: fmt.Sprintf("%.0f", y(share)), Text: fmt.Sprintf("%.*f %%", int(max(d-2, 0)), share*100)})
	}
	wide := max(math.Ceil(math.Log10(float64(most))), 1)
	for d := 0.0; d <= wide; d++ {
		class := map[float64]string{0: "first", wide: "last"}[d]
		if class == "" && wide > 4 && int(d)%2 == 1 {
			class = "many"
		}
		p.X = append(p.X, label{At: fmt.Sprintf("%.1f", 100*d/wide), Text: short(math.Pow(10, d)), Class: class})
		p.Lines = append(p.Lines, int(plotWidth*d/wide))
	}
	for i := range curves {
		p.Paths = append(p.Paths, curves[i].path(wide, y))
		p.Names = append(p.Names, curves[i].text())
	}
	return p
}

// path is the curve on an axis of so many decades.
func (c *Curve) path(decades float64, y func(float64) float64) string {
	const points = 250
	var path strings.Builder
	last, to := math.NaN(), "M"
	for i := range points + 1 {
		limit := int64(math.Round(math.Pow(10, decades*float64(i)/points)))
		x := plotWidth * math.Log10(float64(limit)) / decades
		now := y(c.share(limit))
		if now == last && i < points {
			continue
		}
		if !math.IsNaN(last) {
			fmt.Fprintf(&path, "L%.1f %.1f", x, last)
		}
		if now != last {
			fmt.Fprintf(&path, "%s%.1f %.1f", to, x, now)
		}
		last, to = now, "L"
	}
	return path.String()
}
