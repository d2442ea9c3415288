package command

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func explain() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "explain <url>",
		Short: "Tells what would become of a request, and why",
		Long: `Tells what would become of a request: who the client is and by which rule, which zones apply,
the key in each, what is used of the limit, and whether it would pass. Nothing is
charged. --from is who is connected: the proxy in front, if there is one.`,
		Example: `  $ caddy distributed-ratelimit explain https://example.com/login --method POST --from 192.0.2.7
  $ caddy distributed-ratelimit explain http://localhost:8080/ --from 10.0.0.1 --header "X-Forwarded-For: 192.0.2.7"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("write the URL of the request, for example: caddy distributed-ratelimit explain https://example.com/login --from 192.0.2.7")
			}
			return nil
		},
	}, explainRequest)
	r.Flags().StringP("method", "X", "", "The request's method")
	r.Flags().StringArrayP("header", "H", nil, `A header of the request, "Name: value"; may be repeated`)
	r.Flags().String("from", "", "The address that the request comes from")
	r.Flags().String("body", "", "The request's body")
	r.Flags().StringArray("var", nil, "What a handler would set that is not run, name=value; may be repeated")
	r.Flags().String("server", "", "The name of the HTTP server, if the URL leaves a doubt")
	return r.Command
}

// explained is the answer to explain.
type explained struct {
	Server   string
	Granted  bool
	Handlers []explainedHandler
	Ends     string
	Assumed  []string
}

type explainedHandler struct {
	Client        struct{ IP, Rule, Because string }
	Granted       bool
	Reason, Error string
	Status        int
	StoreError    string `json:"store_error"`
	Zones         []explainedZone
}

type explainedZone struct {
	limit
	Applies                       bool
	Because, Exempt, Key, Plan    string
	Unlimited                     bool
	Limit, Share, Used, Remaining *int64
	Window                        float64
	Reset                         *float64
	BlockedUntil                  *time.Time `json:"blocked_until"`
	BlockedBy                     string     `json:"blocked_by"`
	Granted                       *bool
	Reason, Detail                string
}

func explainRequest(r *remote, args []string) error {
	text := func(name string) string { value, _ := r.Flags().GetString(name); return value }
	body := map[string]any{"url": args[0]}
	for name, value := range map[string]string{"method": text("method"), "remote_addr": text("from"), "body": text("body"), "server": text("server")} {
		if value != "" {
			body[name] = value
		}
	}
	headers := make(map[string][]string)
	lines, _ := r.Flags().GetStringArray("header")
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return errors.New(`a header has no colon; write for example --header "X-Forwarded-For: 192.0.2.7"`)
		}
		headers[name] = append(headers[name], strings.TrimSpace(value))
	}
	if len(headers) > 0 {
		body["headers"] = headers
	}
	vars := make(map[string]string)
	pairs, _ := r.Flags().GetStringArray("var")
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return errors.New("a --var has no equals sign; write for example --var http.auth.user.id=alice")
		}
		vars[name] = value
	}
	if len(vars) > 0 {
		body["vars"] = vars
	}
	var answer explained
	show, err := r.ask(http.MethodPost, "explain", body, &answer)
	if err != nil || !show {
		return err
	}
	return r.showExplained(&answer)
}

func (r *remote) showExplained(x *explained) error {
	outcome := "granted"
	if !x.Granted {
		outcome = "refused"
	}
	if err := r.tell("", "The request would be %s by server %s.", outcome, x.Server); err != nil {
		return err
	}
	if len(x.Handlers) == 0 {
		if err := r.tell("", "It meets no limit. Its way ends with %s; a limit behind that is not asked.", x.Ends); err != nil {
			return err
		}
	}
	for _, h := range x.Handlers {
		text := fmt.Sprintf("The client is %s (%s).", h.Client.IP, h.Client.Because)
		if h.Reason != "" {
			text += fmt.Sprintf(" It would be refused with status %d, reason %s.", h.Status, h.Reason)
		}
		for _, problem := range []string{h.Error, h.StoreError} {
			if problem != "" {
				text += " " + problem
			}
		}
		fmt.Fprintln(r.OutOrStdout())
		if err := r.tell("", "%s", text); err != nil {
			return err
		}
		t := newTable(r.OutOrStdout(), "ZONE", "KEY", "LIMIT", "USED", "REMAINING", "ALL FREE IN", "SAYS")
		for _, z := range h.Zones {
			z.row(t)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, assumed := range x.Assumed {
		if err := r.tell("", "Assumed: %s.", strings.TrimSuffix(assumed, ".")); err != nil {
			return err
		}
	}
	return nil
}

func (z *explainedZone) row(t *table) {
	if !z.Applies {
		t.row(z.limit, "-", "-", "-", "-", "-", strings.TrimSpace("does not apply: "+z.Because+" "+z.Exempt))
		return
	}
	most, free, says := count(z.Limit), "-", "granted"
	if z.Unlimited {
		most = "unlimited"
	}
	if z.Plan != "" {
		most += " (" + z.Plan + ")"
	}
	if z.Reset != nil {
		free = span(*z.Reset)
	}
	if z.Granted != nil && !*z.Granted {
		says = strings.TrimSpace("refused: " + z.Reason + " " + z.Detail)
	}
	if z.BlockedUntil != nil {
		says = strings.TrimSuffix(says, ": blocked") + ", blocked by " + z.BlockedBy + " until " + until(*z.BlockedUntil)
	}
	t.row(z.limit, z.Key, most, count(z.Used), count(z.Remaining), free, says)
}
