// Package settings is what all parts of a configuration share when they are read:
// mistakes, which know where they are and what to write instead; the words of a
// Caddyfile; and matchers, which are set up once while the Caddyfile is parsed, so
// that what is wrong with them shows there.
//
// It knows no handler, zone or store. Nothing in it is meant for concurrent use.
package settings

import "fmt"

// Mistake is a mistake in a configuration: which field it is in, by its
// name in the Caddyfile, so that the parser can point to the line, and what
// to write instead.
type Mistake struct {
	Zone  string // name of the zone, empty if the mistake is not in one
	Field string
	Err   error // what is wrong, and what to write instead
}

// Wrong is a mistake in a field outside of zones; the text is formatted as by
// [fmt.Errorf].
func Wrong(field, format string, args ...any) *Mistake {
	return &Mistake{Field: field, Err: fmt.Errorf(format, args...)}
}

// Error names the zone, if there is one. It does not name the field: Err does.
func (m *Mistake) Error() string {
	if m.Zone != "" {
		return fmt.Sprintf("zone %q: %v", m.Zone, m.Err)
	}
	return m.Err.Error()
}

func (m *Mistake) Unwrap() error { return m.Err }
