package caddytest

import (
	"strings"
	"testing"
)

func TestCaddyfileMistakesOfTheGlobalOption(t *testing.T) {
	for _, m := range []mistake{
		{"argument", "{\n\tdistributed_ratelimit 30 1m" + here + "\n}\n:80 {\n}", []string{"takes a block", "limits belong into sites"}},
		{"twice", "{\n\tdistributed_ratelimit {\n\t\tstore memory\n\t}\n\tdistributed_ratelimit {" + here + "\n\t}\n}\n:80 {\n}", []string{"configured twice", "merge"}},
		{"zone", global("zone a {" + here + "\n}"), []string{"zone belongs into a site"}},
		{"unknown", global("jitter 3" + here), []string{`unknown option "jitter"`, "store, trusted_proxies"}},
		{"distributed", global("distributed" + here), []string{"distributed is not an option", "store redis"}},
		{"storage", global("storage redis" + here), []string{"storage is not an option", "store redis"}},
		{"sweep_interval", global("sweep_interval 1m" + here), []string{"sweep_interval is not an option", "remove it"}},
		{"store twice", global("store memory", "store memory"+here), []string{"store is already given on line 3"}},
		{"store without name", global("store" + here), []string{"store needs a name"}},
		{"store unknown", global("store redys" + here), []string{`there is no store "redys"`, "memory or redis"}},
		{"policy", global("on_store_error 500" + here), []string{`unknown on_store_error "500"`}},
		{"budget", global("budget 90s" + here), []string{"budget 1m30s is not between 1ms and 1m"}},
		{"ranges", global("trusted_proxies 10.0.0.0/8 192.168.0.0/16" + here), []string{"write: trusted_proxies static 10.0.0.0/8 192.168.0.0/16"}},
		{"headers", global("client_ip_headers A B" + here), []string{"client_ip_headers has 2 headers"}},
		{"memory argument", global("store memory 5" + here), []string{"store memory takes no argument"}},
		{"memory unknown", global("store memory {", "size 5"+here, "}"), []string{`unknown option "size" of store memory`, "max_keys"}},
		{"max_keys 0", global("store memory {", "max_keys 0"+here, "}"), []string{"max_keys 0 is not between 1 and 100000000"}},
		{"max_keys below", global("store memory {", "max_keys -5"+here, "}"), []string{"max_keys -5 is not between"}},
		{"max_keys too large", global("store memory {", "max_keys 100000001"+here, "}"), []string{"max_keys 100000001 is not between"}},
		{"max_keys word", global("store memory {", "max_keys many"+here, "}"), []string{`max_keys "many" is not a whole number`}},
	} {
		t.Run(m.name, m.check)
	}
}

func TestCaddyfileMistakesOfRedis(t *testing.T) {
	const url = "redis://:" + secret + "@"
	for _, m := range []mistake{
		{"two URLs", global("store redis " + url + "a " + url + "b" + here), []string{"store redis takes one URL, not 2"}},
		{"scheme", global("store redis http://:" + secret + "@host" + here), []string{"redis://, rediss:// and unix://; write redis://host:port"}},
		{"no URL", global("store redis localhost:6379" + here), []string{"redis://"}},
		{"host and nothing else", global("store redis localhost" + here), []string{"redis://"}},
		{"unreadable", global("store redis redis://user:" + secret + "%zz@host" + here), []string{"percent encoding"}},
		{"slash in the password", global("store redis redis://:" + secret + "/x@host" + here), []string{"percent encoding"}},
		{"hash in the password", global("store redis redis://:" + secret + "#x@host" + here), []string{"percent encoding"}},
		{"user without password", global("store redis redis://" + secret + "@host" + here), []string{":password@host"}},
		{"database", global("store redis " + url + "host/abc" + here), []string{"database", "not a number"}},
		{"database below zero", global("store redis " + url + "host/-1" + here), []string{"database -1 is negative"}},
		{"parameters", global("store redis " + url + "host?timeout=" + secret + here), []string{"parameters other than db"}},
		{"port", global("store redis " + url + "host:99999" + here), []string{"port"}},
		{"relative socket", global("store redis unix://run/redis.sock" + here), []string{"unix:///path/to.sock"}},
		{"URL and address", global("store redis "+url+"host {", "address other:6379"+here, "}"), []string{"both a URL and an address", "one of them"}},
		{"address form", redis("address localhost" + here), []string{"host:port"}},
		{"address with a password", redis("address " + url + "host" + here), []string{"host:port"}},
		{"address port", redis("address host:port" + here), []string{"port", "1 to 65535"}},
		{"two addresses", redis("address a:1 b:2" + here), []string{"address has 2 servers", "cluster or sentinel"}},
		{"two lines of addresses", redis("address a:1", "address b:2"+here), []string{"address has 2 servers", "write one of them"}},
		{"no address", redis("address" + here), []string{"address needs a server", "address localhost:6379"}},
		{"empty address", redis(`address a:1 ""`+here, "cluster"), []string{"address is empty"}},
		{"user without password in the block", redis("username me" + here), []string{"username has no password", "write password as well"}},
		{"password of two words", redis("password " + secret + " x" + here), []string{"password takes one argument"}},
		{"password empty", redis(`password ""` + here), []string{"password is empty"}},
		{"db below zero", redis("db -1" + here), []string{"db -1 is negative"}},
		{"db word", redis("db main" + here), []string{`db "main" is not a whole number`}},
		{"db twice", global("store redis "+url+"host/1 {", "db 2"+here, "}"), []string{"twice"}},
		{"key_prefix with braces", redis("key_prefix a}b" + here), []string{`key_prefix "a}b"`, "brace"}},
		{"key_prefix too long", redis("key_prefix " + strings.Repeat("p", 65) + here), []string{"key_prefix has 65 bytes"}},
		{"tls argument", redis("tls on" + here), []string{"tls takes a block or nothing", `"on"`}},
		{"tls cert alone", redis("tls {"+here, "cert /c.pem", "}"), []string{"only one of cert and key", "needs both"}},
		{"tls key alone", redis("tls {"+here, "key /k.pem", "}"), []string{"only one of cert and key"}},
		{"tls unknown", redis("tls {", "ciphers all"+here, "}"), []string{`unknown option "ciphers" of tls`}},
		{"tls twice", redis("tls {", "ca /a", "ca /b"+here, "}"), []string{"ca is already given"}},
		{"tls verify argument", redis("tls {", "insecure_skip_verify yes"+here, "}"), []string{"takes no argument"}},
		{"tls over a socket", redis("address unix//run/redis.sock", "tls"+here), []string{"Unix socket"}},
		{"timeout", redis("timeout 5m" + here), []string{"timeout 5m0s is not between 100ms and 30s"}},
		{"timeout 0", redis("timeout 0" + here), []string{"timeout", "not a duration above zero"}},
		{"dial_timeout", redis("dial_timeout 1us" + here), []string{"dial_timeout 1µs is not between"}},
		{"pool_size 0", redis("pool_size 0" + here), []string{"pool_size 0", "1 or above"}},
		{"pool_size", redis("pool_size 1001" + here), []string{"pool_size 1001 is not between 1 and 1000"}},
		{"queue_size too large", redis("queue_size 1000001" + here), []string{"queue_size 1000001 is not between 1 and 1000000"}},
		{"queue_size", redis("queue_size -1" + here), []string{"queue_size -1 is not between"}},
		{"unknown", redis("compression on" + here), []string{`unknown option "compression" of store redis`, "address, cluster"}},
		{"host", redis("host localhost" + here), []string{`unknown option "host"`, "write address <host:port>"}},
		{"client_type", redis("client_type cluster" + here), []string{`unknown option "client_type"`, "write cluster or sentinel"}},
		{"tls_enabled", redis("tls_enabled true" + here), []string{`unknown option "tls_enabled"`, "write tls"}},
		{"tls_insecure", redis("tls_insecure true" + here), []string{`unknown option "tls_insecure"`, "insecure_skip_verify"}},
		{"tls_server_certs_path", redis("tls_server_certs_path /ca.pem" + here), []string{"unknown option", "tls { ca <file> }"}},
		{"cluster without address", redis("cluster" + here), []string{"a cluster has no default address", "address host:6379"}},
		{"cluster with argument", redis("address a:1", "cluster yes"+here), []string{"cluster takes no argument", `"yes"`}},
		{"cluster twice", redis("address a:1", "cluster", "cluster"+here), []string{"cluster is already given"}},
		{"cluster and sentinel", redis("address a:1", "cluster", "sentinel"+here), []string{"sentinel and cluster exclude each other", "remove one"}},
		{"cluster of sockets", redis("cluster", "address unix//run/redis.sock"+here), []string{"Unix socket", "write host:port"}},
		{"cluster with a bad address", redis("cluster", "address a:1 "+url+"b"+here), []string{"address 2 of 2", "host:port"}},
		{"cluster with a bad address beside a URL", global("store redis "+url+"a {", "cluster", "address b:1 c"+here, "}"), []string{"address 2 of 2", "host:port"}},
		{"cluster with a bad address beside a placeholder", redis("cluster", "address {env.DRL_NOT_SET} b"+here), []string{"address 2 of 2", "host:port"}},
		{"user of a placeholder without password", redis("username {env.DRL_NOT_SET}" + here), []string{"username has no password"}},
		{"cluster with a database", redis("cluster", "address a:1", "db 3"+here), []string{"db 3", "database 0 only", "key_prefix"}},
		{"cluster with a database in the URL", global("store redis "+url+"host/3 {"+here, "cluster", "}"), []string{"database 3", "database 0 only", "key_prefix"}},
		{"cluster with the URL of a socket", global("store redis unix:///run/redis.sock {"+here, "cluster", "}"), []string{"the URL's address is a Unix socket", "write host:port"}},
		{"sentinel without address", redis("sentinel"+here, "master_name mymaster"), []string{"no default address", "address host:26379"}},
		{"sentinel without master_name", redis("address a:26379", "sentinel"+here), []string{"master_name is missing", "for example mymaster"}},
		{"sentinel with argument", redis("address a:1", "sentinel mymaster"+here), []string{"sentinel takes no argument", `"mymaster"`}},
		{"sentinel with the URL of a socket", global("store redis unix:///run/redis.sock {"+here, "sentinel", "master_name m", "}"), []string{"Unix socket"}},
		{"sentinel with a URL without port", global("store redis "+url+"host {"+here, "sentinel", "master_name m", "}"), []string{"no port", "26379"}},
		{"master_name alone", redis("master_name mymaster" + here), []string{"master_name is for Sentinels", "write sentinel as well, or remove it"}},
		{"master_name with a cluster", redis("address a:1", "cluster", "master_name mymaster"+here), []string{"master_name is for Sentinels"}},
		{"sentinel_username alone", redis("sentinel_username me" + here), []string{"sentinel_username is for Sentinels"}},
		{"sentinel_password alone", redis("sentinel_password " + secret + here), []string{"sentinel_password is for Sentinels"}},
		{"sentinel_username without password", redis("address a:1", "sentinel", "master_name m", "sentinel_username me"+here), []string{"sentinel_username has no password", "write sentinel_password"}},
		{"lease", redis("lease maybe" + here), []string{`lease "maybe" is neither on nor off`}},
		{"on_data_loss", redis("on_data_loss panic" + here), []string{`unknown on_data_loss "panic"`, "continue or cautious"}},
		{"instances 0", redis("instances 0" + here), []string{"instances 0", "1 or above"}},
		{"instances", redis("instances 10001" + here), []string{"instances 10001 is not between 1 and 10000"}},
		{"instances word", redis("instances some" + here), []string{`instances "some" is not a whole number`}},
	} {
		t.Run(m.name, m.check)
	}
}

// One name is one limit, wherever it stands in the Caddyfile: then its zones
// must agree, and where they do not, both places are named.
func TestCaddyfileMistakesOverSites(t *testing.T) {
	const a = "http://a.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tevents 10\n\t\t\twindow 1m\n\t\t}\n\t}\n}\n"
	b := func(options ...string) string {
		return a + "http://b.test {\n\tdistributed_ratelimit {\n\t\tzone z {\n" + strings.Join(options, "\n") + "\n\t\t}\n\t}\n}"
	}
	for _, m := range []mistake{
		{
			"unnamed short forms with equal numbers",
			"http://a.test {\n\tdistributed_ratelimit 10 1m\n}\nhttp://b.test {\n\tdistributed_ratelimit 10 60s" + here + "\n}",
			[]string{"without a name is already at Caddyfile:2", "give each a name", "share one limit"},
		},
		{
			"unnamed short forms in one site",
			":80 {\n\tdistributed_ratelimit /a 10 1m\n\tdistributed_ratelimit /b 10 1m" + here + "\n}",
			[]string{"without a name is already at Caddyfile:2"},
		},
		{"window", b("events 10", "window 2m"+here), []string{"window 2m here and 1m", "Caddyfile:3", "rename one"}},
		{"key", b("key {host}"+here, "events 10", "window 1m"), []string{`key "{http.request.host}" here and the client's address`, "Caddyfile:3", "rename one"}},
		{"events", b("events 20"+here, "window 1m"), []string{"events 20 here and 10", "Caddyfile:3", "make them equal"}},
		{"prefix", b("ipv4_prefix 24"+here, "events 10", "window 1m"), []string{"ipv4_prefix 24 here and 32", "Caddyfile:3"}},
		{
			"short form against zone",
			a + "http://b.test {\n\tdistributed_ratelimit 20 1m z" + here + "\n}",
			[]string{"events 20 here and 10", "Caddyfile:3"},
		},
	} {
		t.Run(m.name, m.check)
	}
	for name, file := range map[string]string{
		"equal zones":                     b("events 10", "window 1m"),
		"equal names":                     "http://a.test {\n\tdistributed_ratelimit 10 1m x\n}\nhttp://b.test {\n\tdistributed_ratelimit 10 60s x\n}",
		"other numbers":                   "http://a.test {\n\tdistributed_ratelimit 10 1m\n}\nhttp://b.test {\n\tdistributed_ratelimit 20 1m\n}",
		"other window in a dry run":       b("events 10", "window 2m", "dry_run"),
		"other numbers in another store":  a + "http://b.test {\n\tdistributed_ratelimit 20 2m z {\n\t\tstore redis redis://localhost:1\n\t}\n}",
		"a default that is written out":   b("events 10", "window 1m", "key {client_ip}", "ipv4_prefix 32", "ipv6_prefix 64"),
		"one site block of two addresses": "http://a.test, http://b.test:8080 {\n\tdistributed_ratelimit 10 1m\n}",
	} {
		config, err := adapt(file)
		if err != nil {
			t.Errorf("%s: got error %v, want none:\n%s", name, err, file)
		} else if err := validated(t, config); err != nil {
			t.Errorf("%s: provisioning: got error %v, want none:\n%s", name, err, file)
		}
	}
}

// For limits as other servers write them, the error says how to write them here.
func TestCaddyfileMistakesOfOtherForms(t *testing.T) {
	for _, m := range []mistake{
		{"rate", ":80 {\n\tdistributed_ratelimit 30r/m" + here + "\n}", []string{"write: distributed_ratelimit 30 1m"}},
		{"rate without r", ":80 {\n\tdistributed_ratelimit 30/m" + here + "\n}", []string{"write: distributed_ratelimit 30 1m"}},
		{"rate of two words", ":80 {\n\tdistributed_ratelimit 30 r/m" + here + "\n}", []string{"write: distributed_ratelimit 30 1m"}},
		{"window without a unit", ":80 {\n\tdistributed_ratelimit 30 60" + here + "\n}", []string{"for seconds write 60s"}},
		{"window of a zone without a unit", ":80 {\n\tdistributed_ratelimit {\n\t\tzone z {\n\t\t\tevents 1\n\t\t\twindow 60" + here + "\n\t\t}\n\t}\n}", []string{"for seconds write 60s"}},
	} {
		t.Run(m.name, m.check)
	}
}
