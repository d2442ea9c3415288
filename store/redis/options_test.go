package redis

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseURL(t *testing.T) {
	for _, test := range []struct {
		url  string
		want Options
		tls  bool
	}{
		{url: "redis://localhost", want: Options{Address: "localhost:6379"}},
		{url: " redis://localhost:6380/3\n", want: Options{Address: "localhost:6380", DB: 3}},
		{url: "redis://localhost/?db=4", want: Options{Address: "localhost:6379", DB: 4}},
		{url: "redis://:secret@10.0.0.1:1234", want: Options{Address: "10.0.0.1:1234", Password: "secret"}},
		{url: "redis://user:p%40ss%2F@host", want: Options{Address: "host:6379", Username: "user", Password: "p@ss/"}},
		{url: "redis://[::1]:7000", want: Options{Address: "[::1]:7000"}},
		{url: "redis://[::1]", want: Options{Address: "[::1]:6379"}},
		{url: "rediss://host:6390/1", want: Options{Address: "host:6390", DB: 1}, tls: true},
		{url: "unix:///run/redis.sock?db=2", want: Options{Address: "unix//run/redis.sock", DB: 2}},
		{url: "unix://user:pw@/run/redis.sock", want: Options{Address: "unix//run/redis.sock", Username: "user", Password: "pw"}},
	} {
		got, err := ParseURL(test.url)
		if err != nil {
			t.Errorf("ParseURL(%q): %v", test.url, err)
			continue
		}
		if (got.TLS != nil) != test.tls {
			t.Errorf("ParseURL(%q): TLS %v", test.url, got.TLS)
		}
		got.TLS = nil
		if got.Identity() != test.want.Identity() || got.Address != test.want.Address {
			t.Errorf("ParseURL(%q) = %+v, want %+v", test.url, got, test.want)
		}
	}
}

// TestParseURLErrors has a password in every URL, as far as its writer is
// concerned, and in no error.
func TestParseURLErrors(t *testing.T) {
	for _, url := range []string{
		"redis://user:hun/ter2@host:6379",
		"redis://user:12/hunter2@host:6379",
		"redis://user:hun#hunter2@host:6379",
		"redis://user:12#hunter2@host:6379",
		"redis://user:12?hunter2@host:6379",
		"redis://user:12?hunter2=%zz@host:6379",
		"redis://user:hunter2%zz@host:6379",
		"redis://user:hunter2@host:port",
		"redis://user:hunter2@host:99999",
		"redis://user:hunter2@host:6379/hunter2",
		"redis://user:hunter2@host:6379/-1",
		"redis://user:hunter2@host:6379/1?db=2",
		"redis://user:hunter2@host:6379?timeout=hunter2",
		"redis://user:hunter2@:6379",
		"redis://hunter2@host:6379",
		"redis:hunter2@host:6379",
		"hunter2@host:6379",
		"user:hunter2@host:6379",
		"http://user:hunter2@host:6379",
		"unix://user:hunter2@run/redis.sock",
		"unix:hunter2",
		"redis://user:hunter2@ho st:6379",
		"redis://user:hunter2 @host:6379#",
		"",
	} {
		_, err := ParseURL(url)
		switch {
		case err == nil:
			t.Errorf("ParseURL(%q): no error", url)
		case strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "hun") || strings.Contains(err.Error(), "user:"):
			t.Errorf("ParseURL(%q) repeats it: %v", url, err)
		case !strings.HasPrefix(err.Error(), "redis: "):
			t.Errorf("ParseURL(%q): %v", url, err)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("redis://user:password@host:6379/0?db=1#x")
	f.Add("unix://:password@/path")
	f.Fuzz(func(t *testing.T, url string) {
		o, err := ParseURL(url)
		if err != nil {
			return
		}
		if err := o.Validate(); err != nil {
			t.Errorf("ParseURL(%q) = %+v: %v", url, o, err)
		}
		if o.Password != "" && len(o.Password) > 8 && strings.Contains(o.name(), o.Password) &&
			!strings.Contains(o.Address, o.Password) {
			t.Errorf("the name %q has the password of %q in it", o.name(), url)
		}
	})
}

func TestValidate(t *testing.T) {
	good := Options{Address: "localhost:6379"}
	if err := good.Validate(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for _, test := range []struct {
		change func(*Options)
		field  string
		want   string
	}{
		{func(o *Options) { o.Address = "" }, "Address", "is missing"},
		{func(o *Options) { o.Address = "localhost" }, "Address", "host:port"},
		{func(o *Options) { o.Address = ":6379" }, "Address", "host:port"},
		{func(o *Options) { o.Address = "redis://user:hunter2@host:6379" }, "Address", "host:port"},
		{func(o *Options) { o.Address = "user:hunter2@host:6379" }, "Address", "host:port"},
		{func(o *Options) { o.Address = "hunter2@host:6379" }, "Address", "host:port"},
		{func(o *Options) { o.Address = "host:0" }, "Address", "port"},
		{func(o *Options) { o.Address = "unix/redis.sock" }, "Address", "not absolute"},
		{func(o *Options) { o.Address, o.TLS = "/redis.sock", &tls.Config{} }, "TLS", "TLS cannot be used on a Unix socket"},
		{func(o *Options) { o.DB = -1 }, "DB", "DB -1 is negative"},
		{func(o *Options) { o.Username = "hunter2" }, "Username", "Username has no password; write Password as well"},
		{func(o *Options) { o.KeyPrefix = "a{b" }, "KeyPrefix", "brace"},
		{func(o *Options) { o.KeyPrefix = "a b" }, "KeyPrefix", "space"},
		{func(o *Options) { o.KeyPrefix = "a\nb" }, "KeyPrefix", "control"},
		{func(o *Options) { o.KeyPrefix = strings.Repeat("a", 65) }, "KeyPrefix", "has 65 bytes; 64 is the most"},
		{func(o *Options) { o.PoolSize = -1 }, "PoolSize", "PoolSize -1 is not between 1 and 1000"},
		{func(o *Options) { o.PoolSize = 1001 }, "PoolSize", "PoolSize 1001 is not between 1 and 1000"},
		{func(o *Options) { o.QueueSize = -1 }, "QueueSize", "QueueSize -1 is not between"},
		{func(o *Options) { o.QueueSize = 1_000_001 }, "QueueSize", "QueueSize 1000001 is not between 1 and 1000000"},
		{func(o *Options) { o.Timeout = time.Hour }, "Timeout", "Timeout 1h0m0s is not between 100ms and 30s"},
		{func(o *Options) { o.DialTimeout = -1 }, "DialTimeout", "DialTimeout -1ns is not between"},
		{func(o *Options) { o.Instances = -1 }, "Instances", "Instances -1 is not between"},
		{func(o *Options) { o.Instances = 10_001 }, "Instances", "Instances 10001 is not between 1 and 10000"},
		{func(o *Options) { o.Cluster = []string{"host:1"} }, "Cluster", "Cluster and Address exclude each other"},
		{func(o *Options) { o.Sentinels, o.MasterName = []string{"host:1"}, "master" }, "Sentinels", "Sentinels and Address exclude each other"},
		{func(o *Options) { o.MasterName = "master" }, "MasterName", "write Sentinels as well"},
		{func(o *Options) { o.SentinelPassword = "hunter2" }, "SentinelPassword", "write Sentinels as well"},
		{func(o *Options) { o.SentinelUsername = "hunter2" }, "SentinelUsername", "write Sentinels as well"},
		{inCluster("host:1", "hunter2"), "Cluster", "Cluster[1] is not of the form host:port"},
		{inCluster("unix//run/redis.sock"), "Cluster", "Cluster[0] is a Unix socket"},
		{inCluster(""), "Cluster", "Cluster[0] is not of the form host:port"},
		{func(o *Options) { inCluster("host:1")(o); o.DB = 1 }, "DB", "database 0 only; remove it, and keep data apart by KeyPrefix"},
		{func(o *Options) { inCluster("host:1")(o); o.MasterName = "master" }, "MasterName", "is for Sentinels"},
		{behindSentinels("", "host:1"), "MasterName", "MasterName is missing"},
		{behindSentinels("master", "host:1", "redis://:hunter2@host"), "Sentinels", "Sentinels[1] is not of the form host:port"},
		{func(o *Options) { behindSentinels("master", "host:1")(o); o.SentinelUsername = "hunter2" }, "SentinelUsername", "write SentinelPassword as well"},
		{func(o *Options) { behindSentinels("master", "host:1")(o); o.Cluster = []string{"host:1"} }, "Sentinels", "Sentinels and Cluster exclude each other"},
	} {
		o := good
		test.change(&o)
		err := o.Validate()
		var mistake *OptionError
		if !errors.As(err, &mistake) || mistake.Field != test.field ||
			!strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v; want %q in field %s", o, err, test.want, test.field)
		}
		if s, err := Open(o); err == nil {
			s.Close()
			t.Errorf("%+v was opened", o)
		}
	}
}

// A program that calls the fields otherwise has the errors in its words.
func TestOptionErrorInOtherWords(t *testing.T) {
	words := func(field string) string { return "<" + field + ">" }
	for _, test := range []struct {
		options Options
		want    string
	}{
		{Options{Address: "a:1", PoolSize: -1}, "<PoolSize> -1 is not between 1 and 1000"},
		{Options{Address: "a:1", Username: "me"}, "<Username> has no password; write <Password> as well, or remove it"},
		{Options{Cluster: []string{"a:1", "%s"}}, "<Cluster> is not of the form host:port, with a port from 1 to 65535"},
		{Options{Address: "a:1", KeyPrefix: "%s{KeyPrefix"}, `<KeyPrefix> "%s{KeyPrefix" has a brace, a space or a control character; use letters, digits and punctuation`},
	} {
		var mistake *OptionError
		if err := test.options.Validate(); !errors.As(err, &mistake) || mistake.Text(words) != test.want {
			t.Errorf("%+v: got error %v, want one whose text in other words is %q", test.options, err, test.want)
		}
	}
}

// inCluster and behindSentinels make the options those of several servers.
func inCluster(addresses ...string) func(*Options) {
	return func(o *Options) { o.Address, o.Cluster = "", addresses }
}

func behindSentinels(master string, addresses ...string) func(*Options) {
	return func(o *Options) { o.Address, o.MasterName, o.Sentinels = "", master, addresses }
}

// TestIdentityOfSeveral: the order of the servers does not matter, nor what
// opens the way to them.
func TestIdentityOfSeveral(t *testing.T) {
	identity := func(changes ...func(*Options)) string {
		o := Options{Password: "hunter2"}
		for _, change := range changes {
			change(&o)
		}
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		for _, name := range []string{o.Identity(), o.name()} {
			if strings.Contains(name, "hunter2") {
				t.Errorf("%q has the password in it", name)
			}
		}
		return o.Identity()
	}
	password := func(o *Options) { o.SentinelUsername, o.SentinelPassword = "user", "hunter2" }
	for _, same := range [][2]string{
		{identity(inCluster("a:1", "b:2")), identity(inCluster("b:2", "a:1", "b:2"))},
		{identity(behindSentinels("m", "a:1", "[::1]:2")), identity(behindSentinels("m", "[::1]:2", "a:1"), password)},
	} {
		if same[0] != same[1] {
			t.Errorf("%q and %q are the same data", same[0], same[1])
		}
	}
	seen := map[string]bool{}
	for _, change := range []func(*Options){
		func(o *Options) { o.Address = "a:1" },
		inCluster("a:1"), inCluster("a:1", "b:2"), behindSentinels("m", "a:1"), behindSentinels("n", "a:1"), behindSentinels("m", "a:1", "b:2"),
		func(o *Options) { behindSentinels("m", "a:1")(o); o.DB = 1 },
	} {
		if seen[identity(change)] {
			t.Errorf("%q are different data", identity(change))
		}
		seen[identity(change)] = true
	}
	o := Options{KeyPrefix: "p"}
	inCluster("b:2", "a:1")(&o)
	if got, want := o.name(), "redis cluster a:1 b:2 prefix p"; got != want {
		t.Errorf("name() = %q, want %q", got, want)
	}
	o = Options{DB: 3}
	behindSentinels("m", "b:2", "a:1")(&o)
	if got, want := o.name(), "redis sentinel m a:1 b:2 db 3"; got != want {
		t.Errorf("name() = %q, want %q", got, want)
	}
}

func TestIdentity(t *testing.T) {
	base := Options{Address: "host:6379", Username: "user", Password: "hunter2", KeySecret: []byte("pepper")}
	for _, secret := range []string{"hunter2", "pepper", "user"} {
		if strings.Contains(base.Identity(), secret) {
			t.Errorf("%q has %q in it", base.Identity(), secret)
		}
	}
	for what, change := range map[string]func(*Options){
		"address":    func(o *Options) { o.Address = "host:6380" },
		"db":         func(o *Options) { o.DB = 1 },
		"prefix":     func(o *Options) { o.KeyPrefix = "other" },
		"user name":  func(o *Options) { o.Username = "other" },
		"password":   func(o *Options) { o.Password = "other" },
		"key secret": func(o *Options) { o.KeySecret = []byte("other") },
		"a shift":    func(o *Options) { o.Username, o.Password = "userh", "unter2" },
	} {
		o := base
		change(&o)
		if o.Identity() == base.Identity() {
			t.Errorf("another %s, and the same identity", what)
		}
	}
	for what, change := range map[string]func(*Options){
		"default prefix": func(o *Options) { o.KeyPrefix = DefaultKeyPrefix },
		"timeout":        func(o *Options) { o.Timeout = time.Second },
		"pool size":      func(o *Options) { o.PoolSize = 3 },
		"TLS":            func(o *Options) { o.TLS = &tls.Config{} },
	} {
		o := base
		change(&o)
		if o.Identity() != base.Identity() {
			t.Errorf("the %s makes another identity", what)
		}
	}
	a, b := Options{Address: "unix//run/redis.sock"}, Options{Address: "/run/redis.sock"}
	if a.Identity() != b.Identity() {
		t.Error("two ways to write a path make two identities")
	}
}
