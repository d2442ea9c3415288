// Command film records docs/film.svg: three real Caddys and a real Redis, and what
// a shell prints that asks them. scripts/film runs it.
//
// The output and its pace are real. Typing and the pauses between commands are
// added, waiting for longer than two seconds is cut, and the ports are replaced by
// the ones that everybody knows.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// scene is a comment or a command of the film.
type scene struct {
	text string
	// run is what is run, if it is not what is shown.
	run string
	// until is text that the output must have; the command is repeated until it has
	// it, and only the last time is recorded.
	until string
}

// scenes in their order. Every command must succeed.
var scenes = []scene{
	{text: "# Three Caddys share one limit through Redis: 30 requests a minute for each client."},
	{text: "cat Caddyfile"},
	{text: "curl -si 127.0.0.1:8081 | grep -E 'HTTP|Ratelimit:'"},
	{text: "# 59 more requests, to the three in turn."},
	{text: "ask", run: "ask 59"},
	{text: "curl -si 127.0.0.1:8082 | grep -E 'HTTP|Retry-After'"},
	{text: "# 30 granted, whichever Caddy was asked. Now Redis dies."},
	{text: "redis-cli shutdown nosave", run: "redis-cli -p 6379 shutdown nosave"},
	{text: "# Another client asks 60 times: each Caddy grants its third by itself."},
	{text: "ask --interface 127.0.0.2", run: "ask 60 --interface 127.0.0.2"},
	{text: "grep -ho 'the store gives no answer' *.log", until: strings.Repeat("the store gives no answer\n", 3)},
	{text: "# No errors, no waiting. And when Redis is back, they find out by themselves."},
	{text: "redis-server --daemonize yes", run: "redis-server --port 6379 --save '' --daemonize yes >/dev/null"},
	{text: "grep -ho 'the store is back; .*again' *.log", until: strings.Repeat("the store is back; limits are shared again\n", 3)},
}

const config = `:{$PORT} {
	distributed_ratelimit 30 1m {
		ratelimit_headers always
		store redis redis://localhost:6379
	}
	respond "Hello."
}
`

// setup starts what the film is about. ask N sends requests to the three in turn.
const setup = `set -e
redis-server --port 6379 --save '' --daemonize yes >/dev/null
PORT=8081 ADMIN=localhost:2021 bin/caddy start --adapter caddyfile --config started >1.log 2>&1
PORT=8082 ADMIN=localhost:2022 bin/caddy start --adapter caddyfile --config started >2.log 2>&1
PORT=8083 ADMIN=localhost:2023 bin/caddy start --adapter caddyfile --config started >3.log 2>&1
until curl -s localhost:2021/metrics | grep -q 'store_instances.* 3$'; do sleep 0.1; done
set +e
ports=(8081 8082 8083)
n=1
ask() {
	local count=$1; shift
	for i in $(seq $count); do
		curl -s -o /dev/null -w '%{http_code} ' "$@" 127.0.0.1:${ports[n++ % 3]}
	done
	echo
}
`

const cleanup = `bin/caddy stop --address localhost:2021
bin/caddy stop --address localhost:2022
bin/caddy stop --address localhost:2023
redis-cli -p 6379 shutdown nosave
`

func main() {
	if err := film(); err != nil {
		fmt.Fprintln(os.Stderr, "film:", err)
		os.Exit(1)
	}
}

func film() error {
	caddy, err := filepath.Abs("bin/caddy")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "film")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(caddy, filepath.Join(dir, "bin/caddy")); err != nil {
		return err
	}
	s, err := newShell(dir)
	if err != nil {
		return err
	}
	defer s.end()
	for name, text := range map[string]string{
		"Caddyfile": config,
		"started":   s.real.Replace("{\n\tadmin {$ADMIN}\n}\n" + config),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if _, err := s.run(setup); err != nil {
		return err
	}
	var takes []take
	for _, sc := range scenes {
		output, err := s.record(sc)
		if err != nil {
			return err
		}
		takes = append(takes, take{sc.text, output})
	}
	return os.WriteFile("docs/film.svg", []byte(draw(takes)), 0o644)
}

// take is what a scene showed.
type take struct {
	text   string
	output []piece
}

// piece is output, and when it came after the command began.
type piece struct {
	after time.Duration
	text  string
}

// shell runs commands with other ports than the ones they name.
type shell struct {
	cmd        *exec.Cmd
	in         io.WriteCloser
	out        chan piece // after is when it came
	real, said *strings.Replacer
	began      time.Time
	marks      int
}

func newShell(dir string) (*shell, error) {
	s := &shell{cmd: exec.Command("bash"), out: make(chan piece, 10000), began: time.Now()}
	var real, said []string
	for _, port := range []string{"6379", "8081", "8082", "8083", "2021", "2022", "2023"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		_, free, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		real, said = append(real, port, free), append(said, free, port)
	}
	s.real, s.said = strings.NewReplacer(real...), strings.NewReplacer(said...)
	s.cmd.Dir = dir
	s.cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stdout, s.cmd.Stderr = write, write
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	write.Close()
	go func() {
		defer close(s.out)
		for b := make([]byte, 1<<16); ; {
			n, err := read.Read(b)
			if err != nil {
				return
			}
			s.out <- piece{time.Since(s.began), string(b[:n])}
		}
	}()
	return s, nil
}

// run runs commands and returns what they print, and when.
func (s *shell) run(commands string) ([]piece, error) {
	s.marks++
	mark := fmt.Sprintf("\x01end %d:", s.marks)
	start := time.Since(s.began)
	fmt.Fprintf(s.in, "%s\nprintf '\\001end %d:%%d\\n' $?\n", s.real.Replace(commands), s.marks)
	var pieces []piece
	var all bytes.Buffer
	for timeout := time.After(time.Minute); ; {
		select {
		case p, ok := <-s.out:
			if !ok {
				return nil, fmt.Errorf("the shell ended in %s: %s", commands, all.String())
			}
			all.WriteString(p.text)
			text, code, done := strings.Cut(p.text, mark)
			if text != "" {
				pieces = append(pieces, piece{p.after - start, s.said.Replace(text)})
			}
			if done && code != "0\n" {
				return nil, fmt.Errorf("%s: exit status %s: %s", commands, code, all.String())
			}
			if done {
				return pieces, nil
			}
		case <-timeout:
			return nil, fmt.Errorf("does not end: %s: %s", commands, all.String())
		}
	}
}

func (s *shell) record(sc scene) ([]piece, error) {
	command := sc.run
	switch {
	case command == "" && strings.HasPrefix(sc.text, "#"):
		return nil, nil
	case command == "":
		command = sc.text
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		pieces, err := s.run(command)
		if sc.until == "" {
			return pieces, err
		}
		var b strings.Builder
		for _, p := range pieces {
			b.WriteString(p.text)
		}
		if err == nil && b.String() == sc.until {
			return pieces, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%s prints %q, %v", command, b.String(), err)
		}
	}
}

func (s *shell) end() {
	_, _ = s.run(cleanup)
	_ = s.in.Close()
	_ = s.cmd.Wait()
}
