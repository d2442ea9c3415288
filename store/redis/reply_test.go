package redis

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/redistest"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// TestErrorReplies has the server refuse the script in its ways. What was not
// executed is reported so.
func TestErrorReplies(t *testing.T) {
	server := redistest.Start(t)
	s := warmed(t, Options{Address: server.Addr})
	for i := range 3 {
		granted(t, s, one("client", plenty))
		want := int64(i + 1)

		server.Do(t, "CONFIG", "SET", "maxmemory-policy", "noeviction")
		server.Do(t, "CONFIG", "SET", "maxmemory", "1")
		e := failed(t, s, patience, store.KindReply)
		server.Do(t, "CONFIG", "SET", "maxmemory", "0")
		if !e.Unexecuted {
			t.Errorf("out of memory: %v: not certain that it was not executed", e)
		}

		server.Do(t, "REPLICAOF", "127.0.0.1", "1")
		e = failed(t, s, patience, store.KindReply)
		server.Do(t, "REPLICAOF", "NO", "ONE")
		if !e.Unexecuted {
			t.Errorf("read only: %v: not certain that it was not executed", e)
		}

		if got := used(t, s, "client", plenty); got != want {
			t.Errorf("%d units used, want %d", got, want)
		}
	}
	if got := used(t, s, "failed", plenty); got != 0 {
		t.Errorf("%d units used by calls that failed", got)
	}
}

// TestNonsense is a server of another kind.
func TestNonsense(t *testing.T) {
	for reply, unexecuted := range map[string]bool{
		"+OK\r\n":                      false,
		"$3\r\nabc\r\n":                false,
		"*1\r\n:1\r\n":                 false,
		":1\r\n":                       false,
		"$-1\r\n":                      false,
		"hello\r\n":                    false,
		"-upstream failure\r\n":        false,
		"-ERR unknown command\r\n":     true,
		"-MISCONF cannot persist\r\n":  true,
		"-BUSY running a script\r\n":   true,
		"-LOADING from disk\r\n":       true,
		"-NOAUTH log in first\r\n":     true,
		"-CLUSTERDOWN no master\r\n":   true,
		"-NOREPLICAS not enough\r\n":   true,
		"-NOPERM may not evalsha\r\n":  true,
		"-MASTERDOWN link is down\r\n": true,
		"-MOVED 1 127.0.0.1:1\r\n":     true, // it is a cluster's
	} {
		t.Run(fmt.Sprintf("%q", reply), func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					go nonsense(conn, reply)
				}
			}()
			s := open(t, Options{Address: listener.Addr().String()})
			if e := failed(t, s, patience, store.KindReply); e.Unexecuted != unexecuted {
				t.Errorf("%v: unexecuted %v, want %v", e, e.Unexecuted, unexecuted)
			}
		})
	}
}

// nonsense answers a handshake with an error, as servers do that do not know it,
// and everything else with one reply.
func nonsense(conn net.Conn, reply string) {
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for first := true; ; first = false {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		decision := strings.Repeat(reply, bytes.Count(buf[:n], []byte("evalsha")))
		if first {
			decision = "-ERR unknown command\r\n"
		}
		if _, err := conn.Write([]byte(decision)); err != nil {
			return
		}
	}
}

// replied is an error that a server replied.
type replied string

func (e replied) Error() string { return string(e) }
func (replied) RedisError()     {}

// Each version has words of its own for what a user may not do. The remedy is the same.
func TestRightsInEveryVersion(t *testing.T) {
	for version, reply := range map[string]replied{
		"outside of a script": "NOPERM User limiter has no permissions to run the 'mget' command",
		"Redis 6.2 and 7.0":   "ERR The user executing the script can't run this command or subcommand script: 1, on @user_script:1.",
		"later ones":          "ERR ACL failure in script: User limiter has no permissions to run the 'mget' command",
	} {
		if err := explained(reply); !strings.Contains(err.Error(), "+mget") {
			t.Errorf("%s: %v, without the remedy", version, err)
		}
	}
}
