package main

import (
	"fmt"
	"strings"
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
		hotGoal(rep), floorGoal(rep), allocGoal(rep), coldGoal(rep), webGoal(rep),
		callsGoal(rep, "store calls for 1000 granted to a hot client", trafficHot, 10),
		callsGoal(rep, "store calls for 1000 refused", trafficRefused, 1),
		strictGoal(rep), utilisationGoal(rep),
		scriptGoal("script in Redis, 1 to 5 entries, against redis_rate's", rep.Script.Few, 1),
		scriptGoal("script in Redis, full log, against redis_rate's", rep.Script.Full, 1.3),
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
	g := goal{What: "new keys against the best rival, decisions/s", Want: ">= 2 x", Verdict: notTested}
	a, b := rep.speed(nameLeases, cold, false), rep.bestRival(cold, false)
	if a == nil || b == nil {
		return g
	}
	r := a.PerSecond / b.PerSecond
	return decided(g, r >= 2, "%s x (%s against %s of %s)", figure(r), whole(a.PerSecond), whole(b.PerSecond), b.Subject)
}

func webGoal(rep *report) goal {
	g := goal{What: "CPU for a request of Caddy, limited on Redis against unlimited, one hot client", Want: "<= 1.05 x", Verdict: notTested}
	a, b := rep.web(siteCaddyRedis), rep.web(siteCaddy)
	if a == nil || b == nil {
		return g
	}
	return decided(g, a.Ratio <= 1.05, "%.3f x (%s against %s)", a.Ratio, span(a.CPU), span(b.CPU))
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
