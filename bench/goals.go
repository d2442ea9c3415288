package main

import (
	"fmt"
	"strings"
	"time"
)

// goal is something that this module wants to be, and whether it is.
type goal struct {
	What     string
	Want     string
	Measured string
	Verdict  verdict
}

type verdict string

const (
	met       verdict = "met"
	notMet    verdict = "**not met**"
	notTested verdict = "not measured"
)

// judge compares a report with the goals.
func judge(rep *report) []goal {
	return []goal{
		hotGoal(rep), floorGoal(rep), allocGoal(rep), coldGoal(rep), handlerGoal(rep), handlerAllocGoal(rep),
		callsGoal(rep, "store calls for 1000 granted to a hot client", trafficHot, 10),
		callsGoal(rep, "store calls for 1000 refused", trafficRefused, 1),
		siteGoal(rep, 6000, 1, 150), siteGoal(rep, 6000, 4, 300), siteGoal(rep, 600, 1, 230), siteGoal(rep, 600, 4, 420),
		farGoal(rep, 1), farGoal(rep, 4),
		keysGoal(rep),
		strictGoal(rep), utilisationGoal(rep),
		scriptGoal("time in Redis for a decision, 1 to 5 entries, against redis_rate's", rep.Script.Few, 0.65),
		scriptGoal("time in Redis for a decision, full log, against redis_rate's", rep.Script.Full, 0.9),
	}
}

func decided(g goal, ok bool, format string, args ...any) goal {
	g.Measured, g.Verdict = fmt.Sprintf(format, args...), notMet
	if ok {
		g.Verdict = met
	}
	return g
}

func hotGoal(rep *report) goal {
	g := goal{What: "hot key against redis_rate, decisions/s", Want: ">= 100 x", Verdict: notTested}
	a, b := rep.speed(nameLeases, hot, false), rep.speed(nameRate, hot, false)
	if a == nil || b == nil {
		return g
	}
	r := a.PerSecond / b.PerSecond
	return decided(g, r >= 100, "%s x (%s against %s)", figure(r), whole(a.PerSecond), whole(b.PerSecond))
}

func floorGoal(rep *report) goal {
	g := goal{What: "hot key against " + nameFloor + ", time", Want: "<= 3 x", Verdict: notTested}
	a, b := rep.speed(nameLeases, hot, false), rep.speed(nameFloor, hot, false)
	if a == nil || b == nil {
		return g
	}
	r := b.PerSecond / a.PerSecond
	return decided(g, r <= 3, "%s x (%s against %s)", figure(r), span(a.Time), span(b.Time))
}

func allocGoal(rep *report) goal {
	g := goal{What: "hot key, allocations for a decision", Want: "0", Verdict: notTested}
	a := rep.speed(nameLeases, hot, false)
	if a == nil {
		return g
	}
	// Calls of the store, a few in a million decisions, do allocate.
	return decided(g, a.Mallocs < 0.005, "%.4f", a.Mallocs)
}

func coldGoal(rep *report) goal {
	g := goal{What: "new keys against the best rival, decisions/s", Want: ">= 2.5 x", Verdict: notTested}
	a, b := rep.speed(nameLeases, cold, false), rep.bestRival(cold, false)
	if a == nil || b == nil {
		return g
	}
	r := a.PerSecond / b.PerSecond
	return decided(g, r >= 2.5, "%s x (%s against %s of %s)", figure(r), whole(a.PerSecond), whole(b.PerSecond), b.Subject)
}

func handlerGoal(rep *report) goal {
	g := goal{What: "the handler's own time for a request, one zone in memory", Want: "<= 0.7 us", Verdict: notTested}
	h := rep.handler(directiveLimit)
	if h == nil {
		return g
	}
	return decided(g, h.Time <= 700*time.Nanosecond, "%s", span(h.Time))
}

func handlerAllocGoal(rep *report) goal {
	g := goal{What: "the handler's own allocations for a request", Want: "<= 2", Verdict: notTested}
	h := rep.handler(directiveLimit)
	if h == nil {
		return g
	}
	return decided(g, h.Allocs <= 2, "%s", figure(h.Allocs))
}

func siteGoal(rep *report, limit int64, instances int, most float64) goal {
	g := goal{
		What: fmt.Sprintf("store calls for 1000 decisions, %s, L = %s in 1m, %d %s", trafficZipf, whole(float64(limit)), instances, plural(instances, "instance")),
		Want: "<= " + figure(most), Verdict: notTested,
	}
	for _, s := range rep.Sites {
		if s.Limit == limit && s.Instances == instances {
			return decided(g, s.Calls <= most, "%s", figure(s.Calls))
		}
	}
	return g
}

func plural(n int, noun string) string {
	if n == 1 {
		return noun
	}
	return noun + "s"
}

func keysGoal(rep *report) goal {
	g := goal{What: "100,000 clients at random, leases on against off, decisions/s", Want: ">= 1 x", Verdict: notTested}
	for _, p := range rep.Growth.Keys {
		if p.Keys == 100_000 {
			return decided(g, p.Leases >= p.Direct, "%s x (%s against %s)", figure(p.Leases/p.Direct), whole(p.Leases), whole(p.Direct))
		}
	}
	return g
}

func callsGoal(rep *report, what, traffic string, most float64) goal {
	g := goal{What: what, Want: "<= " + figure(most), Verdict: notTested}
	c := rep.calls(nameLeases, traffic)
	if c == nil {
		return g
	}
	return decided(g, c.Calls <= most, "%s", figure(c.Calls))
}

func strictGoal(rep *report) goal {
	g := goal{What: "most granted in any interval, 8 instances, leases on, instances killed", Want: "<= L", Verdict: notTested}
	var worst *outcome
	for i := range rep.Accuracy {
		if o := &rep.Accuracy[i]; isOurs(o.Subject) && (worst == nil || o.Most > worst.Most) {
			worst = o
		}
	}
	if worst == nil {
		return g
	}
	killed := 0
	for _, o := range rep.Accuracy {
		killed += o.Killed
	}
	return decided(g, worst.Most <= worst.Limit, "%d of %d (%s), %d killed", worst.Most, worst.Limit, worst.Attack, killed)
}

func utilisationGoal(rep *report) goal {
	g := goal{What: "utilisation under saturation, 8 instances, leases on", Want: ">= 97 %", Verdict: notTested}
	for _, o := range rep.Accuracy {
		if o.Subject == nameLeases && o.Attack == attackAll {
			return decided(g, o.Utilisation >= 0.97, "%s", percent(o.Utilisation))
		}
	}
	return g
}

func scriptGoal(what string, row scriptRow, most float64) goal {
	g := goal{What: what, Want: "<= " + figure(most) + " x", Verdict: notTested}
	if row.Theirs == 0 {
		return g
	}
	r := row.Ours / row.Theirs
	return decided(g, r <= most, "%s x (%.2f us against %.2f us)", figure(r), row.Ours, row.Theirs)
}

// failedGoals lists the goals that are not met.
func failedGoals(rep *report) string {
	var names []string
	for _, g := range rep.Goals {
		if g.Verdict == notMet {
			names = append(names, g.What)
		}
	}
	return strings.Join(names, "; ")
}
