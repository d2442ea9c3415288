package distributedratelimit

import "fmt"

// configError is a mistake in a configuration: which field it is in, by its
// name in the Caddyfile, so that the parser can point to the line, and what
// to write instead.
type configError struct {
	zone  string // name of the zone, empty if the mistake is not in one
	field string
	err   error
}

func (e *configError) Error() string {
	if e.zone != "" {
		return fmt.Sprintf("zone %q: %v", e.zone, e.err)
	}
	return e.err.Error()
}

func (e *configError) Unwrap() error { return e.err }

func wrong(field, format string, args ...any) *configError {
	return &configError{field: field, err: fmt.Errorf(format, args...)}
}
