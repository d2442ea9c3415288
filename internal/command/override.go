package command

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

func override() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "override <zone> --events 1000 --for 1h",
		Short: "Sets another limit for a while, or ends that",
		Long: `Sets another limit for a while, 1s to 30d, on all instances; or ends that with --end. What
was granted before counts on. In a zone with plans --plan says whose limit it is;
default stands for all that are not in the table.`,
		Example: `  $ caddy distributed-ratelimit override api --events 1000 --for 1h --note "sale"
  $ caddy distributed-ratelimit override api --events 5000 --for 30d --plan pro
  $ caddy distributed-ratelimit override api --end`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("write the zone, for example: caddy distributed-ratelimit override api --events 1000 --for 1h")
			}
			return nil
		},
	}, setOverride).ofZone()
	r.Flags().String("events", "", "The limit, 0 to 1000000000000; 0 refuses everything")
	r.Flags().String("for", "", "How long, for example 90s, 10m, 1h30m or 30d")
	r.Flags().String("plan", "", "The plan whose limit it is, in a zone with plans")
	r.Flags().String("note", "", "Why, for whoever sees it")
	r.Flags().Bool("end", false, "End the override")
	return r.Command
}

func setOverride(r *remote, args []string) error {
	p := r.about(make(parameters))
	for _, name := range []string{"events", "for", "plan", "note"} {
		if r.Flags().Changed(name) {
			p[name], _ = r.Flags().GetString(name)
		}
	}
	end, _ := r.Flags().GetBool("end")
	method := http.MethodPut
	switch {
	case end && (r.Flags().Changed("events") || r.Flags().Changed("for") || r.Flags().Changed("note")):
		return errors.New("--end stands without --events, --for and --note")
	case end:
		method = http.MethodDelete
	case p["events"] == "" || p["for"] == "":
		return errors.New("write the limit and how long it is to hold, for example --events 1000 --for 1h; or --end")
	}
	var answer struct {
		limit
		Plan      string
		Events    int64
		Until     *time.Time
		Found     *bool
		Elsewhere string `json:"holds_elsewhere_within"`
	}
	show, err := r.ask(method, pathOf(args[0], "override"), p, &answer)
	if err != nil || !show {
		return err
	}
	whose := "zone " + answer.limit.String()
	if answer.Plan != "" {
		whose += ", plan " + answer.Plan
	}
	if end && answer.Found != nil && !*answer.Found {
		return r.tell("", "There was no override of %s.", whose)
	}
	if end || answer.Until == nil {
		return r.tell(answer.Elsewhere, "The configured limit of %s holds again.", whose)
	}
	return r.tell(answer.Elsewhere, "The limit of %s is %s until %s.", whose, fmt.Sprint(answer.Events), until(*answer.Until))
}

// listedOverride is an override in the answers to GET overrides and GET zones.
type listedOverride struct {
	limit
	Plan    string
	Events  int64
	Window  float64
	Note    string
	Until   time.Time
	InForce bool `json:"in_force"`
	Because string
}

func overrides() *cobra.Command {
	return newRemote(cobra.Command{
		Use:   "overrides",
		Short: "Lists the limits that were set by hand",
		Long: `Lists the limits that were set by hand, on whatever instance, and why those do not hold
that do not: the zone is not, or not as it was then, in the configuration.`,
		Example: "  $ caddy distributed-ratelimit overrides",
		Args:    cobra.NoArgs,
	}, func(r *remote, _ []string) error {
		var list []listedOverride
		show, err := r.get("overrides", nil, &list)
		if err != nil || !show {
			return err
		}
		if len(list) == 0 {
			return r.tell("", "No limit was set by hand.")
		}
		t := newTable(r.OutOrStdout(), "ZONE", "PLAN", "LIMIT", "UNTIL", "IN FORCE", "NOTE")
		for _, o := range list {
			of := fmt.Sprintf("%d in flight", o.Events)
			if o.Window > 0 {
				of = fmt.Sprintf("%d in %s", o.Events, span(o.Window))
			}
			holds := "yes"
			if !o.InForce {
				holds = "no: " + o.Because
			}
			t.row(o.limit, cmp.Or(o.Plan, "-"), of, until(o.Until), holds, cmp.Or(o.Note, "-"))
		}
		return t.flush()
	}).Command
}
