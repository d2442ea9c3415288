package caddytest

import "testing"

func TestCaddyfileMistakesOfBodies(t *testing.T) {
	const key = "key {form.user}"
	for _, m := range []mistake{
		{"form without a field", zone(`key "{form.}"` + here), []string{`"form." names no field of a form`, "form.username"}},
		{"form of brackets", zone("key {form.[]}" + here), []string{"names no field of a form"}},
		{"json without a path", zone(`key "{json.}"` + here), []string{`"json." has an empty step`, "json.user.name"}},
		{"json with an empty step", zone("key {json.a..b}" + here), []string{"has an empty step"}},
		{"address instead of a field", zone(key, "on_empty_key client"+here), []string{"no substitute", "pads the body", "remove on_empty_key"}},
		{"address beside a field", zone("key {client_ip}-{form.user}", "on_empty_key client"+here), []string{"no substitute"}},
		{"prefix", zone(key, "ipv4_prefix 24"+here), []string{"holds no address"}},
		{"key_normalize without a word", zone(key, "key_normalize"+here), []string{"key_normalize needs a word", "lower, trim, both, or off"}},
		{"key_normalize unknown", zone(key, "key_normalize upper"+here), []string{`unknown key_normalize "upper"`, "lower, trim"}},
		{"key_normalize twice", zone(key, "key_normalize lower lower"+here), []string{"has lower twice"}},
		{"key_normalize off and more", zone(key, "key_normalize trim off"+here), []string{"off stands alone"}},
		{"key_normalize of an address", zone("key_normalize lower" + here), []string{"holds nothing that can be written in several ways"}},
		{"body_limit of no body", site("body_limit 1MiB" + here), []string{"no zone here reads a body", "remove body_limit", "{form.<field>}"}},
		{"body_timeout of no body", site("body_timeout 1s" + here), []string{"no zone here reads a body", "remove body_timeout"}},
		{"body_limit large", site(key, "body_limit 2MiB"+here), []string{"2097152 bytes is not between 1KiB and 1MiB"}},
		{"body_limit small", site(key, "body_limit 10"+here), []string{"10 bytes is not between"}},
		{"body_limit word", site(key, "body_limit much"+here), []string{`body_limit "much" is not a size`, "64KiB"}},
		{"body_limit 0", site(key, "body_limit 0"+here), []string{`body_limit "0" is not a size above zero`}},
		{"body_limit in a zone", zone(key, "body_limit 1KiB"+here), []string{"body_limit does not belong into a zone"}},
		{"body_timeout long", site(key, "body_timeout 1h"+here), []string{"body_timeout 1h0m0s is not between 100ms and 5m0s"}},
		{"body_memory in a site", site("body_memory 1GiB" + here), []string{`unknown option "body_memory"`}},
		{"body_memory small", global("body_memory 100KiB" + here), []string{"body_memory of 102400 bytes is less than 1MiB", "256MiB"}},
		{"body_memory word", global("body_memory all" + here), []string{`body_memory "all" is not a size`}},
		{"body_limit everywhere", global("body_limit 10MiB" + here), []string{"is not between 1KiB and 1MiB"}},
		{"orig_path without a pattern", zone("match orig_path" + here), []string{"orig_path needs a pattern"}},
		{"orig_path without a slash", zone("match orig_path login" + here), []string{`orig_path "login" never matches`, "write /login"}},
	} {
		t.Run(m.name, m.check)
	}
}

func TestCaddyfileTakesFieldsOfBodies(t *testing.T) {
	for _, options := range []string{
		"key {form.username}", "key {json.user.name}", "key {json.users.0.id}|{form.user[id]}", "key {host}-{form.username}",
		"key {form.username}\non_empty_key skip", "key {form.username}\non_empty_key deny\nkey_normalize off", "key {header.X}\nkey_normalize lower trim",
		"key {client_ip}-{form.username}\nipv4_prefix 24", "match orig_path /login* *.php {vars.path}",
	} {
		if config, err := adapt(zone(options)); err != nil {
			t.Errorf("%s: got error %v, want none", options, err)
		} else if err := validated(t, config); err != nil {
			t.Errorf("%s: provisioning: got error %v, want none", options, err)
		}
	}
}
