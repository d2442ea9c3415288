// Package command is what caddy distributed-ratelimit does on the command line: it
// asks the admin endpoint of a running Caddy, and shows people and scripts what that
// answers. It decides nothing itself.
package command

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Parent makes cmd the command that the others are below.
func Parent(cmd *cobra.Command) {
	// By itself cobra shows the help for a word that is no command, with status 0.
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return fmt.Errorf("there is no command %q; see: %s --help", args[0], cmd.CommandPath())
	}
}
