package command

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// limit says which limit an answer is about.
type limit struct {
	Zone, Store string
	DryRun      bool `json:"dry_run"`
}

func (l limit) String() string {
	if l.DryRun {
		return l.Zone + " (dry run)"
	}
	return l.Zone
}

const aboutKeys = `

The key is written as the log (with log_key) and explain show it; a - reads it from
the standard input, where it stands in no list of processes. --client-ip stands for
the key of a client that is told by its address alone.`

// keyed adds what names a key.
func (r *remote) keyed() *remote {
	r.ofZone().Flags().String("client-ip", "", "A client's address, instead of the key")
	r.Long += aboutKeys
	r.Args = func(cmd *cobra.Command, args []string) error {
		byFlag := cmd.Flags().Changed("client-ip") || cmd.Flags().Changed("id")
		if byFlag && len(args) != 1 || !byFlag && len(args) != 2 {
			return fmt.Errorf("write the zone, and either the key or --client-ip; for example: %s", exampleOf(cmd))
		}
		return nil
	}
	return r
}

// exampleOf is the first example of a command.
func exampleOf(cmd *cobra.Command) string {
	first, _, _ := strings.Cut(strings.TrimSpace(cmd.Example), "\n")
	return strings.TrimPrefix(first, "$ ")
}

// key returns the parameters that name the key.
func (r *remote) key(args []string) (parameters, error) {
	p := r.about(make(parameters))
	if len(args) == 1 {
		for flag, name := range map[string]string{"client-ip": "client_ip", "id": "id"} {
			if r.Flags().Changed(flag) {
				p[name], _ = r.Flags().GetString(flag)
			}
		}
		return p, nil
	}
	p["key"] = args[1]
	if args[1] == "-" {
		text, err := io.ReadAll(io.LimitReader(r.InOrStdin(), 1<<20))
		if err != nil {
			return nil, fmt.Errorf("reading the key: %v", err)
		}
		p["key"] = strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	}
	return p, nil
}

func pathOf(zone, what string) string { return "zones/" + url.PathEscape(zone) + "/" + what }

// changed is the answer to what changes a key.
type changed struct {
	limit
	Key       string
	Found     *bool
	Kept      *bool
	Until     *time.Time
	Elsewhere string `json:"holds_elsewhere_within"`
}

// tell says what was done, and when it holds elsewhere.
func (r *remote) tell(elsewhere, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if elsewhere != "" {
		text += " All instances follow within " + elsewhere + "."
	}
	_, err := fmt.Fprintln(r.OutOrStdout(), printable(text))
	return err
}

// change makes a call that changes a key.
func (r *remote) change(method, what string, args []string, more parameters, say func(*changed) string) error {
	p, err := r.key(args)
	if err != nil {
		return err
	}
	for name, value := range more {
		p[name] = value
	}
	var answer changed
	show, err := r.ask(method, pathOf(args[0], what), p, &answer)
	if err != nil || !show {
		return err
	}
	return r.tell(answer.Elsewhere, "%s", say(&answer))
}

func show() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "show <zone> <key>",
		Short: "Shows what a key has used of its limit",
		Long:  "Shows what a key has used of its limit, what is left, and whether it is banned. It changes\nnothing.",
		Example: `  $ caddy distributed-ratelimit show login 192.0.2.7
  $ caddy distributed-ratelimit show api --client-ip 192.0.2.7 --plan pro`,
	}, showKey).keyed()
	r.Flags().String("plan", "", "The plan whose limit is meant, in a zone with plans")
	return r.Command
}

// shownKey is the answer to a look at a key.
type shownKey struct {
	limit
	Key, Plan, Source      string
	Limit, Used, Remaining *int64
	Override               bool
	Window, Reset          float64
	BlockedUntil           *time.Time `json:"blocked_until"`
	BlockedBy              string     `json:"blocked_by"`
	StoreError             string     `json:"store_error"`
}

// alone is why the numbers are those of one instance.
func (k *shownKey) alone() string {
	why := ""
	if k.StoreError != "" {
		why = " (" + k.StoreError + ")"
	}
	return "the store has not answered" + why + "; this is what one instance counts by itself"
}

func showKey(r *remote, args []string) error {
	p, err := r.key(args)
	if err != nil {
		return err
	}
	if plan, _ := r.Flags().GetString("plan"); plan != "" {
		p["plan"] = plan
	}
	var k shownKey
	show, err := r.get(pathOf(args[0], "keys"), p, &k)
	if err != nil || !show {
		return err
	}
	t := newTable(r.OutOrStdout())
	t.row("zone", k.limit)
	t.row("key", k.Key)
	most := count(k.Limit)
	if k.Limit == nil {
		most = "unlimited"
	}
	if k.Window > 0 {
		most += " in " + span(k.Window)
	}
	if k.Plan != "" {
		most += ", plan " + k.Plan
	}
	if k.Override {
		most += ", set by hand"
	}
	t.row("limit", most)
	t.row("used", count(k.Used))
	t.row("remaining", count(k.Remaining))
	if k.Window > 0 {
		t.row("all free", "in "+span(k.Reset))
	}
	if k.BlockedUntil != nil {
		t.row("blocked", "until "+until(*k.BlockedUntil)+", by "+k.BlockedBy)
	}
	if k.Source != "store" {
		t.row("", k.alone())
	}
	return t.flush()
}

func reset() *cobra.Command {
	return newRemote(cobra.Command{
		Use:   "reset <zone> <key>",
		Short: "Forgets what a key has used of its limit",
		Long: `Forgets what a key has used of its limit, and a ban of block_for with it. Up to one
limit more is granted, once. A ban that was set by hand stays: see unban.`,
		Example: "  $ caddy distributed-ratelimit reset login 192.0.2.7",
	}, func(r *remote, args []string) error {
		return r.change(http.MethodDelete, "keys", args, nil, func(c *changed) string {
			return fmt.Sprintf("The key %s of zone %s has its whole limit again.", c.Key, c.limit)
		})
	}).keyed().Command
}

func ban() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "ban <zone> <key> --for 10m",
		Short: "Refuses a key for some time",
		Long:  "Refuses a key for some time, 1s to 30d, on all instances, in the place of any other ban of\nit.",
		Example: `  $ caddy distributed-ratelimit ban login 192.0.2.7 --for 10m
  $ caddy distributed-ratelimit ban login --client-ip 192.0.2.7 --for 30d`,
	}, func(r *remote, args []string) error {
		lasts, _ := r.Flags().GetString("for")
		if lasts == "" {
			return errors.New("write how long the ban is to hold, for example --for 10m")
		}
		return r.change(http.MethodPut, "bans", args, parameters{"for": lasts}, func(c *changed) string {
			text := fmt.Sprintf("The key %s of zone %s is banned", c.Key, c.limit)
			if c.Until != nil {
				text += " until " + until(*c.Until)
			}
			return text + "."
		})
	}).keyed()
	r.Flags().String("for", "", "How long, for example 90s, 10m, 1h30m or 30d")
	return r.Command
}

func unban() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "unban <zone> <key>",
		Short: "Ends the ban of a key",
		Long: `Ends the ban of a key, whether it was set by hand or by block_for, and forgets what the
key has used of its limit; with --keep that counts on. With --id, and of a zone that the
configuration does not have any more, it ends a ban that bans lists, and that counts on.`,
		Example: "  $ caddy distributed-ratelimit unban login 192.0.2.7\n  $ caddy distributed-ratelimit unban login --id ZKQ6O2JD5M",
	}, func(r *remote, args []string) error {
		p := make(parameters)
		if keep, _ := r.Flags().GetBool("keep"); keep {
			p["keep"] = "true"
		}
		return r.change(http.MethodDelete, "bans", args, p, func(c *changed) string {
			text := fmt.Sprintf("The key %s of zone %s is not banned any more", cmp.Or(c.Key, "of this ban"), c.limit)
			if c.Kept != nil && !*c.Kept {
				text += ", and has its whole limit again"
			}
			text += "."
			if c.Found != nil && !*c.Found {
				text += " No ban was set by hand."
			}
			return text
		})
	}).keyed()
	r.Flags().Bool("keep", false, "Keep what the key has used of its limit")
	r.Flags().String("id", "", "The id of the ban that bans shows, instead of the key")
	return r.Command
}

// listedBan is a ban in the answer to GET bans.
type listedBan struct {
	limit
	NotConfigured bool `json:"not_configured"`
	Key, ID       string
	Set, Until    time.Time
}

func bans() *cobra.Command {
	return newRemote(cobra.Command{
		Use:   "bans",
		Short: "Lists the bans that were set by hand",
		Long: `Lists the bans that were set by hand, on whatever instance. Keys are shown where all
handlers with the zone have log_key; unban takes the id for all of them. Bans of zones that
the configuration does not have hold again when it has them.`,
		Example: "  $ caddy distributed-ratelimit bans",
		Args:    cobra.NoArgs,
	}, func(r *remote, _ []string) error {
		var list []listedBan
		show, err := r.get("bans", nil, &list)
		if err != nil || !show {
			return err
		}
		if len(list) == 0 {
			return r.tell("", "No ban was set by hand.")
		}
		t := newTable(r.OutOrStdout(), "ZONE", "KEY", "SET", "UNTIL", "ID")
		for _, b := range list {
			if b.Key == "" {
				b.Key = "-"
			}
			zone := b.limit.String()
			if b.NotConfigured {
				zone += " (not configured)"
			}
			t.row(zone, b.Key, b.Set.Local().Format(time.DateTime), until(b.Until), b.ID)
		}
		return t.flush()
	}).Command
}
