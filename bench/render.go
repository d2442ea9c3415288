package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// render writes a report in Markdown whose tables can be read as they are.
// Images are taken from a directory, relative to the text; there are none if
// it is empty.
func render(rep *report, images string) string {
	d := &document{images: images}
	d.head(rep)
	if len(rep.Accuracy) > 0 && images == "benchmarks" {
		// Drawn from this page by internal/worstwindow.
		d.image("worst", "the most that each limiter granted within one window, in percent of the limit")
	}
	if len(rep.Speeds) > 0 {
		d.image("decisions", "decisions per second of each limiter in each situation")
	}
	if len(rep.Calls) > 0 {
		d.image("calls", "scripts in Redis for 1000 decisions of each limiter in each traffic")
	}
	d.table("", []string{"goal", "want", "measured", ""}, goalRows(rep))
	if bad := failedGoals(rep); bad != "" {
		d.text("Not met in this run: " + bad + ".")
	}
	d.decisions(rep)
	d.script(rep)
	d.calls(rep)
	d.sites(rep)
	d.far(rep)
	d.growth(rep)
	d.accuracy(rep)
	d.handler(rep)
	d.web(rep)
	d.machine(rep)
	return d.b.String()
}

type document struct {
	b      strings.Builder
	images string
}

func (d *document) title(s string) { fmt.Fprintf(&d.b, "## %s\n\n", s) }
func (d *document) text(s string)  { fmt.Fprintf(&d.b, "%s\n\n", s) }

func (d *document) image(name, alt string) {
	if d.images != "" {
		fmt.Fprintf(&d.b, "![%s](%s/%s.svg)\n\n", alt, d.images, name)
	}
}

// table writes columns of equal width. All but the first are right-aligned
// if they hold figures.
func (d *document) table(caption string, head []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	if caption != "" {
		d.text("**" + caption + "**")
	}
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell), 3)
		}
	}
	line := func(cells []string) {
		for i, cell := range cells {
			fill := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(&d.b, "| %s%s |", cell, fill)
			} else {
				fmt.Fprintf(&d.b, " %s%s |", fill, cell)
			}
		}
		d.b.WriteByte('\n')
	}
	line(head)
	rule := make([]string, len(head))
	for i := range rule {
		rule[i] = strings.Repeat("-", width[i]-1) + ":"
	}
	rule[0] = strings.Repeat("-", width[0])
	line(rule)
	for _, row := range rows {
		line(row)
	}
	d.b.WriteByte('\n')
}

func (d *document) head(rep *report) {
	fmt.Fprint(&d.b, "# Benchmarks\n\n")
	if rep.Quick {
		d.text("**From a quick run, which only shows that everything works: not for quoting.**")
	}
	d.text(fmt.Sprintf("This module and its rivals, in one run of %s on one machine: `make bench` repeats it and writes this page. "+
		"The load, Redis and the loaded process share %d cores, so read the ratios; absolute figures are higher if each has a machine of its own. "+
		"Compared subjects were measured in turns; figures are medians.", rep.Took.Round(time.Second), rep.Machine.Cores))
}

func goalRows(rep *report) (rows [][]string) {
	for _, g := range rep.Goals {
		rows = append(rows, []string{g.What, g.Want, g.Measured, string(g.Verdict)})
	}
	return rows
}

// situations in the order of the page, with what they are.
var situations = []struct {
	what situation
	text string
}{
	{hot, "One hot key, 64 goroutines, granted"},
	{cold, "A new key for each decision, 64 goroutines, granted"},
	{refused, "One key over its limit, 64 goroutines, refused"},
	{alone, "One hot key, one goroutine, granted"},
}

func (d *document) decisions(rep *report) {
	if len(rep.Speeds) == 0 {
		return
	}
	d.title("Decisions")
	d.text(fmt.Sprintf("Below HTTP, in one process. The limit for granted decisions is %s in %v, so that nothing is refused; the limit for refused decisions is %d in %v. "+
		"*Ratio* is decisions/s against redis_rate. *Time* is the time of the machine for one decision, 1 s / (decisions/s); median and p99 are the wait of a caller. "+
		"A new key costs every limiter one allocation for its name. *Failed* calls returned an error instead of a decision: throttled gives up when other calls "+
		"have changed the key ten times. Rivals on go-redis have 64 connections, this module its default of at most 8. "+
		"%s is the floor: it counts for one process only, and its map grows without bound.",
		whole(float64(plenty.limit)), plenty.window, tight.limit, tight.window, nameFloor))
	for _, delayed := range []bool{false, true} {
		for _, s := range situations {
			var rows [][]string
			against := 0.0
			if rival := rep.speed(nameRate, s.what, delayed); rival != nil {
				against = rival.PerSecond
			}
			for _, of := range rep.Speeds {
				if of.Situation != s.what || of.Delayed != delayed {
					continue
				}
				rows = append(rows, []string{
					of.Subject, whole(of.PerSecond), ratio(of.PerSecond, against), span(of.Time), span(of.Median), span(of.P99),
					figure(of.Mallocs), whole(of.Bytes), percent(of.Failed),
				})
			}
			caption := s.text
			if delayed {
				caption += ", 1 ms to Redis"
			}
			d.table(caption, []string{"limiter", "decisions/s", "ratio", "time", "median", "p99", "allocs", "bytes", "failed"}, rows)
		}
	}
}

func (d *document) script(rep *report) {
	if len(rep.Script.Points) == 0 {
		return
	}
	s := rep.Script
	d.title("The script in Redis")
	d.text(fmt.Sprintf("The server's own time for a decision (`usec` of `evalsha`), without the network. Each script is called as its library calls it: "+
		"ours decides many in one run when many wait, as with the %d callers of the lower rows. redis_rate's script keeps one number for a key, ours a log. *Best* is the fastest tenth of the passes: "+
		"other work on the machine adds to the median.", scriptWorkers))
	var rows [][]string
	for _, of := range []struct {
		log string
		scriptRow
	}{{"1 to 5 entries, one caller", s.Alone}, {"1 to 5 entries", s.Few}, {"full, about 64 entries", s.Full}} {
		rows = append(rows, []string{
			of.log, micros(of.Ours), micros(of.Theirs), ratio(of.Ours, of.Theirs),
			micros(of.OursBest), micros(of.TheirsBest), ratio(of.OursBest, of.TheirsBest),
		})
	}
	d.table("", []string{"log", "this module", "redis_rate", "ratio", "this module, best", "redis_rate, best", "ratio"}, rows)
	d.image("script", "server time of a decision as the log grows")
}

func (d *document) calls(rep *report) {
	if len(rep.Calls) == 0 {
		return
	}
	d.title("What a thousand decisions cost the store")
	d.text(fmt.Sprintf("At a steady %s decisions/s. *Calls* are the calls below the leases, refunds included; *commands* are all commands that the server counts, "+
		"commands inside scripts included; *CPU* is all CPU time of the server, also for its network.", whole(callRate)))
	traffic := ""
	var rows [][]string
	flush := func() {
		d.table(traffic, []string{"limiter", "granted", "calls", "scripts", "commands", "server CPU"}, rows)
		rows = nil
	}
	for _, c := range rep.Calls {
		if c.Traffic != traffic {
			flush()
			traffic = c.Traffic
		}
		calls := "-"
		if c.Calls >= 0 {
			calls = figure(c.Calls)
		}
		rows = append(rows, []string{c.Subject, percent(c.Granted), calls, figure(c.Scripts), figure(c.Commands), span(c.CPU)})
	}
	flush()
}

func (d *document) sites(rep *report) {
	if len(rep.Sites) == 0 {
		return
	}
	d.title("What the clients of a site cost the store")
	d.text(fmt.Sprintf("%s, %s decisions/s altogether, leases on, after more than a window of the same traffic. "+
		"Few clients reach the limit, and then they are decided one unit at a time. *Calls* are the calls below the leases, refunds included.",
		trafficZipf, whole(callRate)))
	var rows [][]string
	for _, s := range rep.Sites {
		rows = append(rows, []string{
			whole(float64(s.Limit)), whole(float64(s.Instances)), whole(float64(s.Decisions)), percent(s.Granted), figure(s.Calls),
		})
	}
	d.table("", []string{"L in 1m", "instances", "decisions", "granted", "calls for 1000"}, rows)
}

func (d *document) handler(rep *report) {
	if len(rep.Handler) == 0 {
		return
	}
	d.title("The handler")
	d.text("What a directive adds to a request of Caddy that is granted, without the server around it (`go test -bench Handler ./internal/caddytest`): " +
		"the difference to the same site without it, medians of rounds in turns. The limiters count in memory.")
	var rows [][]string
	for _, h := range rep.Handler {
		rows = append(rows, []string{h.Directive, span(h.Time), figure(h.Allocs), whole(h.Bytes)})
	}
	d.table("", []string{"directive", "time", "allocations", "bytes"}, rows)
}

func (d *document) growth(rep *report) {
	g := rep.Growth
	if len(g.Instances) == 0 {
		return
	}
	d.title("How cost grows")
	var rows [][]string
	one := g.Instances[0]
	for _, p := range g.Instances {
		rows = append(rows, []string{whole(float64(p.Instances)), whole(p.Leases), ratio(p.Leases, one.Leases), figure(p.Calls), whole(p.Direct), ratio(p.Direct, one.Direct)})
	}
	d.table("Instances on one hot key, in one process on the same cores: each with its own leases and connections, 64 goroutines altogether",
		[]string{"instances", "leases on", "ratio to 1", "store calls for 1000", "leases off", "ratio to 1"}, rows)

	rows = nil
	for _, p := range g.Keys {
		first := g.Keys[0]
		bytes := "-"
		if p.RedisBytes > 0 {
			bytes = whole(p.RedisBytes)
		}
		rows = append(rows, []string{whole(float64(p.Keys)), whole(p.Leases), ratio(p.Leases, first.Leases), whole(p.Direct), whole(p.Memory), bytes})
	}
	d.table("Keys that all have a log, asked for at random by 64 goroutines, decisions/s",
		[]string{"keys", "leases on", "ratio to 1 key", "leases off", "memory", "Redis bytes/key"}, rows)
	d.image("keys", "decisions per second over the number of keys")

	rows = nil
	for _, p := range g.Limits {
		rows = append(rows, []string{whole(float64(p.Limit)), whole(p.PerSecond), percent(p.Granted), whole(float64(p.FullBytes))})
	}
	d.table("Limits, one hot key, leases on; decisions are granted as the limit allows. The last column is MEMORY USAGE with a log of the greatest length",
		[]string{"L in 1m", "decisions/s", "granted", "Redis bytes, full log"}, rows)

	rows = nil
	for _, b := range g.Bytes {
		name := b.Subject
		if name == nameDirect {
			name = "this module"
		}
		rows = append(rows, []string{name, whole(float64(b.Bytes))})
	}
	d.table("MEMORY USAGE in Redis of a client after one decision", []string{"limiter", "bytes"}, rows)
	heap := fmt.Sprintf("In the process, a key of the memory store takes %s bytes of heap (%s keys with one unit each, their names included)",
		whole(g.MemoryKey), whole(float64(g.MemoryKeys)))
	if g.LeaseKey > 0 {
		heap += fmt.Sprintf("; one in the table of leases and refusals takes %s, and that table holds at most 65,536", whole(g.LeaseKey))
	}
	d.text(heap + ".")
}

func (d *document) accuracy(rep *report) {
	if len(rep.Accuracy) == 0 {
		return
	}
	first := rep.Accuracy[0]
	d.title("Accuracy")
	d.text(fmt.Sprintf("%d instances of each, %d attackers, L = %d in W = %v. *Most* is the largest share of L that was granted in any interval of W; "+
		"only grants whose call began and ended inside it are counted. *Utilisation* compares with an exact log of the same requests: by time, "+
		"or above 100 %% by number, which shows grants beyond the limit. "+
		"To kill an instance of this module, it is cut off from Redis with all its leases, and replaced. "+
		"Express runs once: all attackers ask its one process.", accuracyInstances, attackers, first.Limit, first.Window))
	for _, a := range attacks {
		var rows [][]string
		for _, o := range rep.Accuracy {
			if o.Attack != a.name {
				continue
			}
			rows = append(rows, []string{
				o.Subject, whole(float64(o.Attempts)), whole(float64(o.Granted)), whole(float64(o.Most)),
				percent(float64(o.Most) / float64(o.Limit)), percent(o.Utilisation), whole(float64(o.Killed)), whole(float64(o.Errors)),
			})
		}
		d.table("Attack: "+a.name, []string{"limiter", "attempts", "granted", "most in W", "most / L", "utilisation", "killed", "errors"}, rows)
	}
	d.image("accuracy", "units granted in the window before each moment")
}

func (d *document) web(rep *report) {
	if len(rep.Web) == 0 {
		return
	}
	d.title("HTTP")
	d.text(fmt.Sprintf("A site that responds with `ok`, one client with %d connections, loaded by %s on the same machine. CPU, the user and system time of the server process "+
		"for one request, is the figure to compare; the ratio is the median over rounds of neighbouring runs.", connections, rep.Machine.Load))
	var rows [][]string
	for _, w := range rep.Web {
		base := rep.web(w.Baseline)
		rows = append(rows, []string{
			w.Server, whole(w.PerSecond), ratio(w.PerSecond, base.PerSecond), span(w.CPU),
			fmt.Sprintf("%.3f", w.Ratio), fmt.Sprintf("%.2f to %.2f", w.Low, w.High), figure(w.Calls), whole(float64(w.Rounds)),
		})
	}
	d.table("", []string{"server", "requests/s", "ratio", "CPU for a request", "ratio", "quartiles", "scripts for 1000", "rounds"}, rows)
}

func (d *document) machine(rep *report) {
	d.title("Machine and versions")
	m := rep.Machine
	d.text(fmt.Sprintf("%s, %d cores, %s of memory, Linux %s.", m.CPU, m.Cores, m.Memory, m.Kernel))
	var rows [][]string
	for _, v := range m.Versions {
		rows = append(rows, []string{v.Name, v.Version})
	}
	d.table("", []string{"what", "version"}, rows)
	for _, note := range rep.Missing {
		d.text("Missing: " + note + ".")
	}
}

// whole writes a number without fraction, in groups of three digits.
func whole(f float64) string {
	digits := fmt.Sprintf("%.0f", f)
	sign := ""
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return sign + digits
}

// figure writes three digits.
func figure(f float64) string {
	switch {
	case f >= 100 || f == float64(int64(f)):
		return whole(f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	case f >= 0.1:
		return fmt.Sprintf("%.2f", f)
	case f >= 0.0001:
		return fmt.Sprintf("%.4f", f)
	}
	return "0.0000"
}

func micros(f float64) string { return fmt.Sprintf("%.2f us", f) }

// ratio writes a / b.
func ratio(a, b float64) string {
	if b == 0 {
		return "-"
	}
	return figure(a / b)
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// span writes a duration with three digits.
func span(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case d < time.Millisecond:
		return figure(float64(d)/float64(time.Microsecond)) + " us"
	case d < time.Second:
		return figure(float64(d)/float64(time.Millisecond)) + " ms"
	}
	return figure(d.Seconds()) + " s"
}
