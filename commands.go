package distributedratelimit

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/command"
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
