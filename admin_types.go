package distributedratelimit

import "time"

// Answers of the admin API, which the commands read as well. Times that have passed or
// last are in seconds; moments are RFC 3339.

// zoneAnswer is one limit, in the answer to GET zones and GET zones/<zone>.
type zoneAnswer struct {
	Name   string `json:"name"`
	Store  string `json:"store"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// storeAnswer is one store, in the answer to GET stores.
type storeAnswer struct {
	Name string `json:"name"`
}

// seconds is a length of time as answers tell it.
func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }
