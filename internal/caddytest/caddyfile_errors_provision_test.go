package caddytest

import "testing"

// Ranges of proxies that are written out can be judged where they stand.
func TestCaddyfileMistakesOfTrustedRanges(t *testing.T) {
	for ranges, wants := range map[string][]string{
		"10.0.0.0/33":                     {"10.0.0.0/33", "write addresses, ranges such as 10.0.0.0/8"},
		"private_ranges localhost":        {"localhost", "write addresses"},
		"10.0.0.1-10.0.0.9":               {"10.0.0.1-10.0.0.9"},
		"{env.DRL_NOT_SET}":               {"{env.DRL_NOT_SET}", "{$PROXIES}"},
		"0.0.0.0/0":                       {"0.0.0.0/0 covers every address", "list the networks of the proxies"},
		"private_ranges ::/0":             {"::/0 covers every address"},
		"::ffff:0:0/96":                   {"covers every address"},
		"0.0.0.0/1 128.0.0.0/1":           {"cover 100 % of 0.0.0.0/0", "list the networks of the proxies"},
		"2000::/3":                        {"cover 100 % of 2000::/3"},
		"0.0.0.0/3 32.0.0.0/3 64.0.0.0/8": {"of 0.0.0.0/0", "list the networks of the proxies"},
	} {
		t.Run(ranges, func(t *testing.T) {
			for place, file := range map[string]func(...string) string{"handler": site, "global": global} {
				t.Run(place, mistake{file: file("budget 1s", "trusted_proxies static "+ranges+here), wants: append(wants, "trusted_proxies: ")}.check)
			}
		})
	}
	for _, ranges := range []string{"static private_ranges", "static 0.0.0.0/3 32.0.0.0/3", "static 10.0.0.1 2001:db8::/32", "static", "swapping anybody"} {
		for _, file := range []string{site("trusted_proxies " + ranges), global("trusted_proxies " + ranges)} {
			if config, err := adapt(file); err != nil {
				t.Errorf("trusted_proxies %s: got error %v, want none", ranges, err)
			} else if err := validated(t, config); err != nil {
				t.Errorf("trusted_proxies %s: provisioning: got error %v, want none", ranges, err)
			}
		}
	}
}
