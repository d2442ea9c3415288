package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestGettingStarted runs every command of docs/getting-started.md, in one shell
// as its reader does, and finds what the page says they print. Ports are others.
// The budget is longer, so that a busy machine does not look like an outage.
func TestGettingStarted(t *testing.T) {
	page := pageOf(t, "docs/getting-started.md")
	s := newTour(t)
	three := fenced(t, root+"docs/getting-started.md")
	if len(three) != 1 || !strings.Contains(page, "Save this as `Caddyfile.three`") {
		t.Fatalf("the page shows %d whole Caddyfiles, want Caddyfile.three alone", len(three))
	}
	s.file("Caddyfile.three", strings.Replace(three[0], "\tdistributed_ratelimit {\n", "\tdistributed_ratelimit {\n\t\tbudget 10s\n", 1))
	s.file("Caddyfile.example", "{\n\tadmin localhost:2019\n"+strings.TrimPrefix(exampleBlock(t), "{\n"))

	blocks := regexp.MustCompile("(?ms)^```(sh|text)\n(.*?)^```$").FindAllStringSubmatch(page, -1)
	commands := 0
	for i, block := range blocks {
		if block[1] != "sh" {
			continue
		}
		want := ""
		if i+1 < len(blocks) && blocks[i+1][1] == "text" {
			want = blocks[i+1][2]
		}
		if block[2] == "make build\n" {
			s.makeBuilds()
			continue
		}
		s.run(block[2], want)
		commands++
	}
	if commands < 10 {
		t.Errorf("only %d blocks of commands found", commands)
	}
}

// exampleBlock is Caddyfile.example from its first block on.
func exampleBlock(t *testing.T) string {
	t.Helper()
	_, text, ok := strings.Cut(pageOf(t, "Caddyfile.example"), "\n{\n")
	if !ok {
		t.Fatal("Caddyfile.example has no block of global options")
	}
	return "{\n" + text
}

// tour is a shell in a directory with a Caddy.
type tour struct {
	t       *testing.T
	dir     string
	ports   *strings.Replacer
	numbers []string // the ports of the page, and what stands for each
	shell   *exec.Cmd
	in      *os.File
	lines   chan string
	done    int
}

func newTour(t *testing.T) *tour {
	t.Helper()
	binary, err := caddyBinary()
	if err != nil {
		t.Fatalf("building Caddy: %v", err)
	}
	s := &tour{t: t, dir: t.TempDir(), lines: make(chan string, 1000)}
	for _, port := range []string{"2019", "2021", "2022", "2023", "6379", "8080", "8081", "8082", "8083"} {
		_, free, _ := net.SplitHostPort(freeAddr(t))
		s.numbers = append(s.numbers, port, free)
	}
	s.ports = strings.NewReplacer(append([]string{"bin/caddy stop\n", "bin/caddy stop --address localhost:" + s.port("2019") + "\n"}, s.numbers...)...)
	if err := os.Mkdir(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(s.dir, "bin/caddy")); err != nil {
		t.Fatal(err)
	}
	s.shell = exec.Command("bash")
	s.shell.Dir = s.dir
	s.shell.Env = append(os.Environ(), "XDG_CONFIG_HOME="+s.dir, "XDG_DATA_HOME="+s.dir)
	read, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.shell.Stdin, s.in = read, in
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.shell.Stdout, s.shell.Stderr = write, write
	if err := s.shell.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = read.Close(), write.Close()
	go func() {
		defer close(s.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			s.lines <- scanner.Text()
		}
	}()
	t.Cleanup(s.end)
	return s
}

// port is the port that stands for one of the page.
func (s *tour) port(of string) string { return s.numbers[slices.Index(s.numbers, of)+1] }

func (s *tour) file(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(s.ports.Replace(text)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// makeBuilds: make builds what the page says it builds.
func (s *tour) makeBuilds() {
	s.t.Helper()
	out, err := exec.Command("make", "-n", "-C", root, "build").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "go build -o bin/caddy ./cmd/caddy") {
		s.t.Errorf("make build: %v\n%s", err, out)
	}
}

// varies is what differs from run to run.
var varies = regexp.MustCompile(`(t=|Retry-After: |again in )\d+`)

// comparable is output without what differs from run to run.
func comparable(output string) string {
	var lines []string
	for line := range strings.Lines(output) {
		lines = append(lines, strings.TrimSpace(varies.ReplaceAllString(line, "$1 some")))
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}

// run runs a block of commands and compares what they print. What only looks is
// repeated until it sees what is meant to be seen.
func (s *tour) run(block, want string) {
	s.t.Helper()
	looks := strings.HasPrefix(block, "cat ") || strings.Contains(block, "/metrics ")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got := s.once(block)
		switch {
		case comparable(got) == comparable(want):
			return
		case !looks || time.Now().After(end):
			s.t.Fatalf("the page says that this\n\n%s\nprints\n\n%s\nand it prints\n\n%s\n%s", block, want, got, s.logs())
		}
	}
}

// once runs a block of commands and returns what they print.
func (s *tour) once(block string) string {
	s.t.Helper()
	s.done++
	name, mark := fmt.Sprintf("block-%d", s.done), fmt.Sprintf("end of block %d", s.done)
	s.file(name, block)
	fmt.Fprintf(s.in, ". ./%s </dev/null; echo; echo %q\n", name, mark)
	var b strings.Builder
	for deadline := time.After(2 * time.Minute); ; {
		select {
		case line, ok := <-s.lines:
			if !ok {
				s.t.Fatalf("the shell ended in\n%s\n%s", block, b.String())
			}
			if line == mark {
				return b.String()
			}
			b.WriteString(line + "\n")
		case <-deadline:
			s.t.Fatalf("this does not end:\n%s\n%s", block, b.String())
		}
	}
}

// logs is what the Caddys logged.
func (s *tour) logs() string {
	var b strings.Builder
	names, _ := filepath.Glob(filepath.Join(s.dir, "*.log"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(&b, "%s:\n%s\n", filepath.Base(name), text)
	}
	return b.String()
}

// end stops what a test that failed may have left.
func (s *tour) end() {
	_ = s.in.Close()
	_ = s.shell.Wait()
	if !s.t.Failed() {
		return // the page cleans up
	}
	for _, port := range []string{"2019", "2021", "2022", "2023"} {
		_ = exec.Command(filepath.Join(s.dir, "bin/caddy"), "stop", "--address", "localhost:"+s.port(port)).Run()
	}
	_ = exec.Command("redis-cli", "-p", s.port("6379"), "shutdown", "nosave").Run()
}
