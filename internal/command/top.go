package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// refresh is how often top redraws.
const refresh = 2 * time.Second

func top() *cobra.Command {
	r := newRemote(cobra.Command{
		Use:   "top <zone>",
		Short: "Shows the busiest keys of one instance",
		Long: `Shows the keys of a zone that came most often to one instance in the last one to two
minutes, and how often they were granted and refused. On a terminal it is redrawn
until it is interrupted. It needs log_key in all handlers with the zone.`,
		Example: "  $ caddy distributed-ratelimit top pages\n  $ caddy distributed-ratelimit top pages --once -n 5",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("write the zone, for example: caddy distributed-ratelimit top pages")
			}
			return nil
		},
	}, showTop).ofZone()
	r.Flags().IntP("lines", "n", 20, "How many keys, 1 to 500")
	r.Flags().Bool("once", false, "Print once and end, also on a terminal")
	return r.Command
}

func showTop(r *remote, args []string) error {
	once, _ := r.Flags().GetBool("once")
	lines, _ := r.Flags().GetInt("lines")
	terminal, onTerminal := r.OutOrStdout().(*os.File)
	onTerminal = onTerminal && term.IsTerminal(int(terminal.Fd())) && !once && !r.json
	for {
		most := lines
		if onTerminal && !r.Flags().Changed("lines") {
			if _, height, err := term.GetSize(int(terminal.Fd())); err == nil && height > 4 {
				most = min(500, height-4)
			}
		}
		var page bytes.Buffer
		show, err := r.drawTop(&page, args[0], most)
		if err != nil || !show {
			return err
		}
		if onTerminal {
			// To the corner, and clear what is below.
			if _, err := io.WriteString(terminal, "\x1b[H\x1b[J"); err != nil {
				return err
			}
		}
		if _, err := page.WriteTo(r.OutOrStdout()); err != nil || !onTerminal {
			return err
		}
		time.Sleep(refresh)
	}
}

func (r *remote) drawTop(page io.Writer, zone string, most int) (show bool, err error) {
	var answer struct {
		limit
		Over float64
		Keys []struct {
			Key                      string
			Granted, Refused, Missed int64
		}
	}
	show, err = r.get("top", r.about(parameters{"zone": zone, "n": strconv.Itoa(most)}), &answer)
	if err != nil || !show {
		return false, err
	}
	fmt.Fprintf(page, "%s, in the last %s\n\n", printable("zone "+answer.limit.String()), span(answer.Over))
	t := newTable(page, "GRANTED", "REFUSED", "KEY")
	for _, k := range answer.Keys {
		refused := strconv.FormatInt(k.Refused, 10)
		if k.Missed > 0 {
			refused += fmt.Sprintf(" (and up to %d more of both)", k.Missed)
		}
		t.row(k.Granted, refused, k.Key)
	}
	return true, t.flush()
}
