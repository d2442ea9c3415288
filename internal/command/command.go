// Package command is what caddy distributed-ratelimit does on the command line: it
// asks the admin endpoint of a running Caddy, and shows people and scripts what that
// answers. It decides nothing itself.
//
// Keys are chosen by strangers: nothing of an answer reaches a terminal but what is
// printable.
package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// Parent makes cmd the command that the others are below, and adds those that ask a
// running Caddy.
func Parent(cmd *cobra.Command) {
	// By itself cobra shows the help for a word that is no command, with status 0.
	cmd.Args = cobra.ArbitraryArgs
	cmd.FParseErrWhitelist.UnknownFlags = true // else they are what is complained about
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return fmt.Errorf("there is no command %q; see: %s --help", args[0], cmd.CommandPath())
	}
	cmd.AddCommand(status(), explain(), show(), reset(), ban(), unban(), bans(), override(), overrides(), top())
}

// remote is a command that asks a running Caddy.
type remote struct {
	*cobra.Command
	address, config, adapter string
	json                     bool
	store                    string // of the zone, if it is in several
	dryRun                   bool
}

// newRemote returns a command that does something.
func newRemote(of cobra.Command, do func(r *remote, args []string) error) *remote {
	r := &remote{Command: &of}
	r.RunE = func(_ *cobra.Command, args []string) error { return do(r, args) }
	r.Flags().StringVar(&r.address, "address", "", "The address of Caddy's admin endpoint, if it is not the default")
	r.Flags().StringVarP(&r.config, "config", "c", "", "Configuration file from which to read the address of the admin endpoint")
	r.Flags().StringVarP(&r.adapter, "adapter", "a", "", "Name of the adapter of the configuration file")
	r.Flags().BoolVar(&r.json, "json", false, "Print the answer as JSON, for scripts")
	return r
}

// ofZone adds the flags that tell zones of one name apart.
func (r *remote) ofZone() *remote {
	r.Flags().StringVar(&r.store, "store", "", "The store of the zone, if zones of the name are in several")
	r.Flags().BoolVar(&r.dryRun, "dry-run", false, "The zone in dry run, if one of the name is in force as well")
	return r
}

// parameters are those of a call. Caddy logs the URLs of calls: they go into the body.
type parameters map[string]string

// about adds what tells zones of one name apart.
func (r *remote) about(p parameters) parameters {
	if r.store != "" {
		p["store"] = r.store
	}
	if r.Flags().Changed("dry-run") {
		p["dry_run"] = fmt.Sprint(r.dryRun)
	}
	return p
}

// fetch makes a call, and returns what was answered.
func (r *remote) fetch(method, path string, body any) ([]byte, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(r.address, nil, r.config, r.adapter)
	if err != nil {
		return nil, fmt.Errorf("finding the admin endpoint: %v", err)
	}
	return call(address, method, path, body)
}

// ask makes a call, reads the answer into a value, and reports whether that is to be
// shown: else it has been printed as JSON.
func (r *remote) ask(method, path string, body, into any) (show bool, err error) {
	answer, err := r.fetch(method, path, body)
	if err != nil {
		return false, err
	}
	if r.json {
		_, err = io.WriteString(r.OutOrStdout(), safeJSON(answer))
		return false, err
	}
	return true, read(answer, into)
}

func read(answer []byte, into any) error {
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("the answer cannot be read (%v); is that a Caddy with another version of the plugin? --json prints it", err)
	}
	return nil
}

func (r *remote) get(path string, body, into any) (show bool, err error) {
	return r.ask(http.MethodGet, path, body, into)
}
