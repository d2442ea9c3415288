package keys

import (
	"slices"
	"strings"
)

// This file is about where the values of a template come from, for those who warn of it.

// AddressAlone reports whether an address is all that tells clients apart.
func (t *Template) AddressAlone() bool {
	return t.address && !slices.ContainsFunc(t.parts, func(p part) bool { return p.kind != partLiteral && !p.address() })
}

// ChosenByClient returns the first placeholder whose value the client can choose
// freely, empty if there is none. With anyHost the host is one, as some site
// takes any.
func (t *Template) ChosenByClient(anyHost bool) string {
	for i := range t.parts {
		p := &t.parts[i]
		switch p.kind {
		case partHost, partHostLabel, partServerName:
			if anyHost {
				return p.name
			}
		case partHeader, partCredentials, partCookie, partQuery, partBody:
			return p.name
		case partPlaceholder:
			if slices.ContainsFunc(chosenFamilies, func(f string) bool { return p.name == f || strings.HasPrefix(p.name, f+".") }) {
				return p.name
			}
		}
	}
	return ""
}

// chosenFamilies hold what the client writes. What Caddy's matchers find is
// taken from paths and headers.
var chosenFamilies = []string{
	"http.request.method", "http.request.orig_method", "http.request.port", "http.request.proto", "http.request.proto_name",
	"http.request.uri", "http.request.uri_escaped", "http.request.orig_uri",
	"http.regexp", "http.url_pattern", "http.matchers.file",
}

// Authenticated reports whether some placeholder is only set by authentication.
func (t *Template) Authenticated() bool {
	return slices.ContainsFunc(t.parts, func(p part) bool {
		return p.kind == partPlaceholder && strings.HasPrefix(p.name, "http.auth.")
	})
}

// Foreign returns the first placeholder that Caddy itself does not have, empty if there is
// none. A plugin or the directive map may set it.
func (t *Template) Foreign() string {
	for i := range t.parts {
		if p := &t.parts[i]; p.kind == partPlaceholder && !ofCaddy(p.name) {
			return p.name
		}
	}
	return ""
}

// Headers are the request headers that are read, in canonical form; one may be there several
// times.
func (t *Template) Headers() (names []string) {
	for i := range t.parts {
		switch p := &t.parts[i]; p.kind {
		case partHeader, partCredentials:
			names = append(names, p.text)
		case partCookie:
			names = append(names, "Cookie")
		}
	}
	return names
}
