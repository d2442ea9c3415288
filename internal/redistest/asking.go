package redistest

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
)

// Do sends a command over the Unix socket and returns its reply, see
// [Conn.Do]. It fails the test if there is an error.
func (s *Server) Do(t testing.TB, args ...any) any {
	t.Helper()
	reply, err := s.ask(args...)
	if err != nil {
		t.Fatalf("redistest: %v: %v", args, err)
	}
	return reply
}

// Dial connects to the server's Unix socket, and logs in with the password of
// "--requirepass". The connection is closed at the end of the test if not
// before.
func (s *Server) Dial(t testing.TB) *Conn {
	t.Helper()
	conn, err := s.dial()
	if err != nil {
		t.Fatalf("redistest: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Keys returns all keys of database 0.
func (s *Server) Keys(t testing.TB) []string {
	t.Helper()
	var keys []string
	for _, key := range s.Do(t, "KEYS", "*").([]any) {
		keys = append(keys, key.(string))
	}
	return keys
}

// Calls returns how often the server has executed a command, such as
// "evalsha", since it started or since CONFIG RESETSTAT.
func (s *Server) Calls(t testing.TB, command string) int {
	t.Helper()
	info := s.Do(t, "INFO", "commandstats").(string)
	_, after, found := bytes.Cut([]byte(info), []byte("cmdstat_"+command+":calls="))
	if !found {
		return 0
	}
	digits, _, _ := bytes.Cut(after, []byte(","))
	n, err := strconv.Atoi(string(digits))
	if err != nil {
		t.Fatalf("redistest: calls of %s: %v", command, err)
	}
	return n
}

// Info returns a field of a section of INFO, such as "role" of "replication",
// and an empty string if there is none.
func (s *Server) Info(t testing.TB, section, field string) string {
	t.Helper()
	return fields(s.Do(t, "INFO", section).(string))[field]
}

// fields reads lines of "name:value", as INFO and CLUSTER INFO reply.
func fields(text string) map[string]string {
	values := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			values[name] = value
		}
	}
	return values
}

// Connections returns how many connections the server has taken since it
// started, not counting those of Dial and Do. Replicas and sentinels connect to
// it as well.
func (s *Server) Connections(t testing.TB) int {
	t.Helper()
	// Its own connection is in both counts, and so is any that is already
	// closed. One that another goroutine makes at this moment may be in one.
	taken, err := strconv.Atoi(s.Info(t, "stats", "total_connections_received"))
	if err != nil {
		t.Fatalf("redistest: connections of %s: %v", s.Addr, err)
	}
	return taken - int(s.dials.Load())
}

// Clients returns how many clients are connected to the server's address. Its
// replicas, its master, sentinels, and nodes that have moved keys to it lately
// are none.
func (s *Server) Clients(t testing.TB) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(s.Do(t, "CLIENT", "LIST").(string)) {
		about := make(map[string]string)
		for _, field := range strings.Fields(line) {
			name, value, _ := strings.Cut(field, "=")
			about[name] = value
		}
		if strings.ContainsAny(about["flags"], "SMU") || // U is the Unix socket
			strings.HasPrefix(about["name"], "sentinel-") || strings.HasPrefix(about["cmd"], "restore") {
			continue
		}
		n++
	}
	return n
}
