// Command bench compares this module with its rivals, side by side in one
// run on one machine, and writes docs/benchmarks.md.
//
//	go run .                  # the whole, about ten minutes on two cores
//	go run . -quick           # a smaller one, to see that all of it works
//	go run . -quick -only decisions,script
//
// It starts what it needs, a redis-server, a proxy that delays, Caddy and
// Node, on free ports of the loopback interface, and ends them again.
//
// # What it does not promise
//
// The load and what is loaded share the machine, so that absolute figures are
// lower than those of a server of its own. The ratios are what to read:
// whatever is compared is measured in turns, several times, and the medians
// are given.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// longest is how long a run may take: something hangs if it is longer.
const longest = 15 * time.Minute

// sections are the parts of a run, in their order.
var sections = []struct {
	name string
	run  func(*rig, *report)
}{
	{"decisions", measureDecisions},
	{"script", measureScript},
	{"calls", measureCalls},
	{"sites", measureSites},
	{"growth", measureGrowth},
	{"accuracy", measureAccuracy},
	{"handler", measureHandler},
	{"http", measureHTTP},
}

func main() {
	quick := flag.Bool("quick", false, "fewer and shorter rounds: shows that everything works, no figures to quote")
	only := flag.String("only", "", "run only these sections, separated by commas: "+strings.Join(sectionNames(), ", "))
	out := flag.String("out", "", "file to write the report to, with its plots in a directory of that name; default ../docs/benchmarks.md, none with -quick or -only")
	root := flag.String("root", "..", "directory of the module whose cmd/caddy is measured")
	profiles := flag.String("profiles", "", "directory to write CPU profiles of this module's decisions to")
	flag.Parse()
	if *out == "" && !*quick && *only == "" {
		*out = "../docs/benchmarks.md"
	}
	if err := run(*quick, *only, *out, *root, *profiles); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(quick bool, only, out, root, profiles string) (err error) {
	wanted := sectionNames()
	if only != "" {
		wanted = strings.Split(only, ",")
		for _, name := range wanted {
			if !slices.Contains(sectionNames(), name) {
				return fmt.Errorf("there is no section %q; there are %s", name, strings.Join(sectionNames(), ", "))
			}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, longest, fmt.Errorf("not done after %v", longest))
	defer cancel()

	began := time.Now()
	r, err := newRig(ctx, quick, root, profiles)
	if err != nil {
		return err
	}
	defer r.end()
	// What cannot go on panics with a failure; see rig.
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(failure)
			if !ok {
				panic(p)
			}
			err = f.err
		}
	}()

	rep := &report{Quick: quick, Sections: wanted}
	r.start()
	rep.Machine = readMachine(r)
	for _, s := range sections {
		if !slices.Contains(wanted, s.name) {
			continue
		}
		r.log("%s", s.name)
		s.run(r, rep)
	}
	rep.Took = time.Since(began)
	rep.Goals = judge(rep)
	fmt.Print(render(rep, ""))
	if out == "" {
		return nil
	}
	return write(rep, out)
}

func sectionNames() (names []string) {
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

// failure is the panic of a rig that cannot go on.
type failure struct{ err error }

// errInterrupted is why a run that somebody stopped has ended.
var errInterrupted = errors.New("interrupted")
