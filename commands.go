package distributedratelimit

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/command"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/replay"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "distributed-ratelimit",
		Usage: "<command>",
		Short: "Shows rate limits, and steers them",
		Long: `
Shows what the limits of the directive distributed_ratelimit do, and changes
what they do by hand.`,
		CobraFunc: func(parent *cobra.Command) {
			command.Parent(parent)
			// Commands that work without a running Caddy.
			parent.AddCommand(replayCommand())
		},
	})
}

// replayFlags are the flags of the command.
type replayFlags struct {
	config, adapter, host string
	suggest, windows      []string
	html                  string
	json                  bool
	maxClients            int
}

// defaultReplayWindows are the windows for which limits are suggested.
var defaultReplayWindows = []string{"1s", "10s", "1m", "10m", "1h", "1d"}

// replayCommand is the command that chooses a limit.
func replayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:   "replay [--config Caddyfile] [--suggest 99.9%] [--html report.html] access.log...",
		Short: "Runs access logs through the limits of a configuration: what would have been refused?",
		Long: `
Runs the requests of access logs through the limits of a configuration, each at the time
when it came, and prints what each zone would have refused, to whom, and when. With
--suggest it prints the least limit that a share of the clients would never have noticed,
for several windows.

Logs are Caddy's, in JSON, or in the common or combined format; compressed with gzip or
zstd, or not; - is standard input. Nothing is started, and no store is asked.`,
		Example: `  caddy distributed-ratelimit replay --config Caddyfile --suggest 99.9% access.log
  zcat access.log.gz | caddy distributed-ratelimit replay --json -
  caddy distributed-ratelimit replay --html report.html /var/log/caddy/access*.log*`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cmd.SilenceUsage = true
			return f.run(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.config, "config", "c", "Caddyfile", "the configuration whose limits are tried")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the config adapter, if it cannot be told from the name of the file")
	flags.StringSliceVar(&f.suggest, "suggest", nil, "suggest limits that this share of the clients would never have noticed, for example 99.9%; several shares with commas")
	flags.StringSliceVar(&f.windows, "windows", defaultReplayWindows, "the windows for which limits are suggested, beside the zone's own")
	flags.StringVar(&f.html, "html", "", "write a report with plots to this file")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	flags.StringVar(&f.host, "host", "", "the host of requests whose log has none, as in the common format")
	flags.IntVar(&f.maxClients, "max-clients", replay.DefaultMaxClients, "how many clients of zones are told apart at most; one takes about 500 bytes")
	return cmd
}

// defaultShares are what the report suggests if nobody asks for a share.
var defaultShares = []float64{0.99, 0.999, 1}

func (f *replayFlags) run(cmd *cobra.Command, files []string) error {
	shares, err := parseShares(f.suggest)
	if err != nil {
		return err
	}
	options := replay.Options{Files: files, Stdin: cmd.InOrStdin(), MaxClients: f.maxClients}
	if len(shares) > 0 || f.html != "" {
		if options.Windows, err = parseWindows(f.windows); err != nil {
			return err
		}
	}
	if f.maxClients < 1 {
		return fmt.Errorf("--max-clients %d: write 1 or more", f.maxClients)
	}
	result, err := f.replay(&options)
	if err != nil {
		return err
	}
	if len(shares) == 0 && f.html != "" {
		result.Suggest(defaultShares)
	} else {
		result.Suggest(shares)
	}
	if f.html != "" {
		if err := writeReport(f.html, result); err != nil {
			return err
		}
	}
	if f.json {
		out := json.NewEncoder(cmd.OutOrStdout())
		out.SetIndent("", "  ")
		err = out.Encode(result)
	} else {
		err = result.WriteText(cmd.OutOrStdout())
	}
	return err
}

// writeReport writes the report to a file: to another one first, so that what was there
// stays if that fails.
func writeReport(name string, result *replay.Result) error {
	file, err := os.CreateTemp(filepath.Dir(name), ".replay-*")
	if err != nil {
		return fmt.Errorf("--html %s: %v", name, err)
	}
	defer os.Remove(file.Name())
	err = result.WriteReport(file)
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("--html %s: %v", name, err)
	}
	return nil
}

// replay loads the configuration and runs the logs through it.
func (f *replayFlags) replay(o *replay.Options) (*replay.Result, error) {
	config, err := readReplayConfig(f.config, f.adapter)
	if err != nil {
		return nil, err
	}
	e, err := newReplayEvaluator(config, f.host)
	if err != nil {
		return nil, err
	}
	bar := newProgressBar(os.Stderr)
	o.Progress = bar.show
	result, err := replay.Run(e, *o)
	bar.clear()
	if err != nil {
		return nil, err
	}
	e.note(result, config)
	return result, result.Problem(slices.Sorted(maps.Keys(e.reads.hosts)))
}

// parseShares reads shares such as 99.9% or 0.999.
func parseShares(texts []string) (shares []float64, err error) {
	for _, text := range texts {
		number, isPercent := strings.CutSuffix(strings.TrimSpace(text), "%")
		share, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if isPercent {
			share /= 100
		}
		if err != nil || !(share > 0 && share <= 1) {
			return nil, fmt.Errorf("--suggest %s is no share of the clients; write for example 99.9%%, or 0.999", text)
		}
		shares = append(shares, share)
	}
	return shares, nil
}

func parseWindows(texts []string) (windows []time.Duration, err error) {
	for _, text := range texts {
		window, err := caddy.ParseDuration(strings.TrimSpace(text))
		if err != nil || window < store.MinWindow || window > store.MaxWindow {
			return nil, fmt.Errorf("--windows %s: write windows of %s to %s, for example 1s,1m,1h", text, windowText(store.MinWindow), windowText(store.MaxWindow))
		}
		windows = append(windows, window)
	}
	return windows, nil
}

// note says what the log does not tell.
func (e *replayEvaluator) note(r *replay.Result, c *replayConfig) {
	redacted, headless := e.redacted.Load() > 0, e.headless.Load() > 0
	for _, l := range e.limits {
		z := &r.Zones[l.zone]
		if z.Unknown > 0 && len(l.redacts) > 0 && z.Unreplayed == "" {
			z.Notes = append(z.Notes, fmt.Sprintf("%s requests could not be decided: the zone reads the header %s, which the log redacts. "+
				"Write log_credentials in the global option servers while you record a log", strconv.FormatInt(z.Unknown, 10), strings.Join(l.redacts, " and ")))
		}
		if len(l.matchers) > 0 && redacted {
			z.Notes = append(z.Notes, fmt.Sprintf("its matchers look at the header %s, which the log redacts, so that they may match other requests here. "+
				"Write log_credentials in the global option servers while you record a log", strings.Join(l.matchers, " and ")))
		}
		if len(l.headers) > 0 && headless {
			z.Notes = append(z.Notes, fmt.Sprintf("it reads the header %s, and the log of some requests has no headers; use a log in the format json", strings.Join(l.headers, " and ")))
		}
	}
	if names := c.passingNames(); len(names) > 0 {
		r.Notes = append(r.Notes, "nobody knows here which requests these handlers respond to; they are taken to pass all of them on: "+strings.Join(names, ", "))
	}
	if c.errorRoutes {
		r.Notes = append(r.Notes, "limits in error routes (handle_errors) are not replayed")
	}
	for range r.Zones {
		if e.countsResponses && r.Logged.Refused > 0 {
			r.Notes = append(r.Notes, "requests that were refused then have no response that count_if could judge; they are taken not to count")
			break
		}
	}
}

// progressBar shows how much has been read, if somebody is looking.
type progressBar struct {
	w     io.Writer // nil if nobody is
	last  time.Time
	shown bool
}

func newProgressBar(file *os.File) *progressBar {
	info, err := file.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 || os.Getenv("TERM") == "dumb" {
		return &progressBar{}
	}
	return &progressBar{w: file, last: time.Now()}
}

func (b *progressBar) show(read, of int64) {
	if b.w == nil || time.Since(b.last) < 200*time.Millisecond {
		return
	}
	b.last, b.shown = time.Now(), true
	if of <= 0 {
		fmt.Fprintf(b.w, "\r%d MiB read", read>>20)
		return
	}
	const width = 40
	done := int(min(read*width/of, width))
	fmt.Fprintf(b.w, "\r[%s%s] %3d %%", strings.Repeat("#", done), strings.Repeat(".", width-done), min(read*100/of, 100))
}

// clear removes the bar.
func (b *progressBar) clear() {
	if b.shown {
		fmt.Fprintf(b.w, "\r%s\r", strings.Repeat(" ", 50))
	}
}
