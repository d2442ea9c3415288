package command

import (
	"bytes"
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func status() *cobra.Command {
	return newRemote(cobra.Command{
		Use:     "status",
		Short:   "Shows the stores and the zones",
		Long:    "Shows how the stores fare, and what the zones have done since the start of this instance.",
		Example: "  $ caddy distributed-ratelimit status",
		Args:    cobra.NoArgs,
	}, showStatus).Command
}

type storeStatus struct {
	Name, Condition string
	Instances       int
	Servers         []struct {
		Server, Condition, Error string
		Since                    *time.Time
		Losses                   int
	}
	Leases *struct {
		LeasedKeys int `json:"leased_keys"`
		Units      int64
		Refusals   int
	}
	Unreported struct{ Units int64 }
}

type zoneStatus struct {
	limit
	Name               string
	Events, Concurrent *int64
	Tier               *struct{}
	Window             float64
	Counters           struct{ Requests map[string]map[string]int64 }
	Overrides          []listedOverride
	BansByHand         int      `json:"bans_by_hand"`
	AtMost             *float64 `json:"at_most"`
}

func showStatus(r *remote, _ []string) error {
	stores, err := r.fetch(http.MethodGet, "stores", nil)
	if err != nil {
		return err
	}
	zones, err := r.fetch(http.MethodGet, "zones", nil)
	if err != nil {
		return err
	}
	if r.json {
		_, err = fmt.Fprintf(r.OutOrStdout(), "{\"stores\":%s,\"zones\":%s}\n", bytes.TrimSpace([]byte(safeJSON(stores))), bytes.TrimSpace([]byte(safeJSON(zones))))
		return err
	}
	var s []storeStatus
	var z []zoneStatus
	if err := read(stores, &s); err != nil {
		return err
	}
	if err := read(zones, &z); err != nil {
		return err
	}
	if err := r.showStores(s); err != nil {
		return err
	}
	fmt.Fprintln(r.OutOrStdout())
	if err := r.showZones(z); err != nil {
		return err
	}
	return r.showLeft(z)
}

// showLeft tells of what was set by hand for zones that the configuration does not have.
func (r *remote) showLeft(zones []zoneStatus) error {
	has := func(of limit) bool {
		return slices.ContainsFunc(zones, func(z zoneStatus) bool { return z.Name == of.Zone && z.Store == of.Store && z.DryRun == of.DryRun })
	}
	var banned []listedBan
	if _, err := r.get("bans", nil, &banned); err != nil {
		return err
	}
	var limits []listedOverride
	if _, err := r.get("overrides", nil, &limits); err != nil {
		return err
	}
	banned = slices.DeleteFunc(banned, func(b listedBan) bool { return has(b.limit) })
	limits = slices.DeleteFunc(limits, func(o listedOverride) bool { return has(o.limit) })
	if len(banned)+len(limits) == 0 {
		return nil
	}
	fmt.Fprintln(r.OutOrStdout())
	return r.tell("", "Set by hand for zones that the configuration does not have: bans: %d, overrides: %d. The commands bans and overrides list them.", len(banned), len(limits))
}

func (r *remote) showStores(stores []storeStatus) error {
	t := newTable(r.OutOrStdout(), "STORE", "SERVER", "CONDITION", "SINCE", "LOSSES", "INSTANCES", "LEASED UNITS", "UNREPORTED")
	for _, s := range stores {
		leased := "-"
		if s.Leases != nil {
			leased = fmt.Sprint(s.Leases.Units)
		}
		t.row(s.Name, "", s.Condition, "", "", s.Instances, leased, s.Unreported.Units)
		for _, server := range s.Servers {
			since := ""
			if server.Since != nil {
				since = span(time.Since(*server.Since).Round(time.Second).Seconds()) + " ago"
			}
			t.row("", server.Server, strings.Trim(server.Condition+": "+server.Error, ": "), since, server.Losses, "", "", "")
		}
	}
	return t.flush()
}

func (r *remote) showZones(zones []zoneStatus) error {
	t := newTable(r.OutOrStdout(), "ZONE", "LIMIT", "GRANTED", "REFUSED", "DRY RUN", "BANS BY HAND", "AT MOST", "LIMIT BY HAND")
	for _, z := range zones {
		z.Zone = cmp.Or(z.Zone, z.Name)
		t.row(z.limit, z.most(), z.total("granted"), z.total("refused"), z.total("dry_run"), z.BansByHand, z.atMost(), z.byHand())
	}
	return t.flush()
}

func (z *zoneStatus) most() string {
	text := "by plan"
	switch {
	case z.Concurrent != nil:
		return count(z.Concurrent) + " in flight"
	case z.Events != nil:
		text = count(z.Events)
	}
	return text + " in " + span(z.Window)
}

func (z *zoneStatus) total(outcome string) (n int64) {
	for _, of := range z.Counters.Requests[outcome] {
		n += of
	}
	return n
}

func (z *zoneStatus) atMost() string {
	switch {
	case z.AtMost == nil:
		return "no bound"
	}
	return fmt.Sprintf("%.3gx", *z.AtMost)
}

func (z *zoneStatus) byHand() string {
	var list []string
	for _, o := range z.Overrides {
		text := fmt.Sprintf("%d until %s", o.Events, until(o.Until))
		if o.Plan != "" {
			text = "plan " + o.Plan + ": " + text
		}
		if o.Note != "" {
			text += ", " + o.Note
		}
		if o.Because != "" {
			text += ", not in force: " + o.Because
		}
		list = append(list, text)
	}
	return cmp.Or(strings.Join(list, "; "), "-")
}
