package caddytest

import "testing"

// Whoever can choose a part of the key has no limit: one warning for each
// zone, unless a zone on the address stands beside it.
func TestKeysOfTheClientsChoiceAreWarnedOf(t *testing.T) {
	const warning = "the client chooses a part of this key"
	const own = "http://a.test"
	address := func(options string) string {
		return "zone address {\nevents 100\nwindow 1h\n" + options + "\n}"
	}
	for name, row := range map[string]struct {
		site, key, beside string
		placeholder       string // empty for no warning
	}{
		"address":               {own, "{client_ip}", "", ""},
		"peer":                  {own, "{remote_host}", "", ""},
		"everybody":             {own, "all", "", ""},
		"path":                  {own, "{client_ip}-{path}", "", "{http.request.uri.path}"},
		"part of the path":      {own, "{client_ip}-{path.0}", "", "{http.request.uri.path.0}"},
		"original path":         {own, "{client_ip}-{orig_path}", "", "{http.request.orig_uri.path}"},
		"method":                {own, "{client_ip}-{method}", "", "{http.request.method}"},
		"uri":                   {own, "{client_ip}-{uri}", "", "{http.request.uri}"},
		"query":                 {own, "{query.q}-{client_ip}", "", "{http.request.uri.query.q}"},
		"all of the query":      {own, "{client_ip}{query}", "", "{http.request.uri.query}"},
		"header":                {own, "{header.x-api-key}", "", "{http.request.header.X-Api-Key}"},
		"cookie":                {own, "{cookie.sid}", "", "{http.request.cookie.sid}"},
		"match":                 {own, "{re.name.1}", "", "{http.regexp.name.1}"},
		"host of a site":        {own, "{client_ip}-{host}", "", ""},
		"host of any site":      {":80", "{client_ip}-{host}", "", "{http.request.host}"},
		"host with a wildcard":  {"http://*.test", "{client_ip}-{host}", "", "{http.request.host}"},
		"label":                 {"http://*.test", "{labels.1}", "", "{http.request.host.labels.1}"},
		"user":                  {own, "{http.auth.user.id}", "", ""},
		"client's certificate":  {own, "{tls_client_fingerprint}", "", ""},
		"variable":              {own, "{vars.tenant}", "", ""},
		"with a zone on it":     {own, "{header.X}", address(""), ""},
		"with one on the peer":  {own, "{header.X}", address("key {remote_host}"), ""},
		"with one on some":      {own, "{header.X}", address("match path /x"), "{http.request.header.X}"},
		"with one in a dry run": {own, "{header.X}", address("dry_run"), "{http.request.header.X}"},
		"with one on both":      {own, "{header.X}", address("key {client_ip}-{vars.tenant}"), "{http.request.header.X}"},
		"with one on the same":  {own, "{header.X}\nmatch path /x", address("match path /x"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, row.site+" {\ndistributed_ratelimit {\nzone z {\nevents 1\nwindow 1h\nkey "+row.key+"\n}\n"+row.beside+"\n}\n}")
			if row.placeholder == "" {
				e.log.says(0, warning)
				return
			}
			for _, line := range e.log.says(1, warning) {
				if line["zone"] != "z" || line["placeholder"] != row.placeholder || line["key"] == nil || line["level"] != "warn" {
					t.Errorf("warning: got %v, want zone z and placeholder %s", line, row.placeholder)
				}
			}
		})
	}
}

// A placeholder that Caddy may not have is warned of, not forbidden: a plugin
// or the directive map may set it.
func TestForeignPlaceholdersAreWarnedOf(t *testing.T) {
	const warning = "Caddy itself does not have this placeholder"
	for key, times := range map[string]int{
		"{geoip2.country_code}": 1, "{tenant}": 1, "{http.ratelimit.name}": 1, "{tenant}{other.one}": 1,
		"{http.auth.user.id}": 0, "{env.REGION}": 0, "{client_ip}": 0, "{system.hostname}": 0, "{http.regexp.x}": 0,
	} {
		t.Run(key, func(t *testing.T) {
			e := start(t, `
http://a.test {
	route {
		map {path} {tenant} {
			/a one
			/b two
		}
		distributed_ratelimit 1 1h z {
			key "`+key+`"
		}
		respond "ok"
	}
}`)
			e.log.says(times, warning)
			if key == "{tenant}" {
				e.granted(1, alice, "http://a.test/a")
				e.granted(1, alice, "http://a.test/b")
				e.refused(bob, "http://a.test/a")
				e.log.says(0, "nobody knows a placeholder")
			}
		})
	}
}
