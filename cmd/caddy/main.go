// Command caddy is Caddy with its standard modules and this plugin, for
// development and for the example. To build one for production, see the
// README.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-distributed-ratelimit/distributed-ratelimit"
)

func main() { caddycmd.Main() }
