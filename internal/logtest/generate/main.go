// Generate writes an access log of made-up traffic to standard output:
//
//	go run ./internal/logtest/generate -bytes 1000000000 >access.log
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/logtest"
)

func main() {
	var o logtest.Options
	flag.Uint64Var(&o.Seed, "seed", 1, "the same seed makes the same log")
	flag.Int64Var(&o.Requests, "requests", 0, "how many requests, 0 for any number")
	flag.Int64Var(&o.Bytes, "bytes", 0, "how many bytes, 0 for any number")
	flag.IntVar(&o.Clients, "clients", 0, "how many visitors; default 20000")
	flag.Float64Var(&o.Rate, "rate", 0, "requests in a second, in the mean; default 15")
	flag.BoolVar(&o.Common, "common", false, "write the combined format")
	flag.StringVar(&o.Host, "host", "", "the host; default example.com")
	flag.Parse()
	if o.Requests == 0 && o.Bytes == 0 {
		fmt.Fprintln(os.Stderr, "write -requests or -bytes, or the log has no end")
		os.Exit(2)
	}
	if _, err := logtest.Write(os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
