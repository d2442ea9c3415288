package llmtest

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed node/package.json node/package-lock.json node/drive.mjs
var nodeFiles embed.FS

// driveTime is the most that one scenario takes, on a busy machine.
const driveTime = 3 * time.Minute

// Scenario is what a user of an official client does.
type Scenario struct {
	URL      string            `json:"url"`      // of the site, without a path
	Endpoint string            `json:"endpoint"` // chat, responses, messages, openaiModels, anthropicModels, countTokens, embeddings
	Request  map[string]any    `json:"request,omitempty"`
	Header   map[string]string `json:"header,omitempty"`  // of every request
	Helper   bool              `json:"helper,omitempty"`  // use the client's class for streams, which puts the chunks together
	Retries  *int              `json:"retries,omitempty"` // nil: the client's own, which is 2
	Timeout  int               `json:"timeout,omitempty"` // milliseconds; 0: the client's own, ten minutes
	Abort    *Abort            `json:"abort,omitempty"`
	Times    int               `json:"times,omitempty"`    // how many at once, without Chunks; 0: one
	Careless bool              `json:"careless,omitempty"` // reads choices[0] of every chunk
}

// Abort is when a user has enough:
//
//	before   before anything is sent
//	sent     N milliseconds after the request was sent
//	attempt  N milliseconds after a response's header, of an error too
//	chunk    with chunk N of the stream
//	break    the same, but by leaving the loop over the stream
//	after    when all is over
type Abort struct {
	At string `json:"at"`
	N  int    `json:"n,omitempty"`
}

// Run is what a user sees of one request.
type Run struct {
	Attempts []Attempt
	Chunks   []json.RawMessage // of a stream, as the client gives them
	Count    int               // of them
	Text     string
	Finish   string
	Usage    json.RawMessage // null if there is none
	Aborted  bool            // and yet it ended without an error
	Error    *ClientError    // nil if it ended well
}

// Attempt is one request of a client on the wire.
type Attempt struct {
	At     time.Duration // since the start of the scenario, when the header was there
	Status int           // 0 if there was none
	Retry  string        // what the client says of itself: the number of attempts before
}

// ClientError is the exception that the client throws.
type ClientError struct {
	Class      string `json:"class"`
	Status     int    `json:"status"`
	Code       string `json:"code"`
	Type       string `json:"type"`
	Message    string `json:"message"`
	RetryAfter string `json:"retryAfter"`
}

// SDKs are the official clients, installed.
type SDKs struct{ dir string }

// InstallSDKs installs the official clients, once in a process; [RemoveSDKs]
// removes them. Where there is no Node or npm cannot reach its registry, the
// test says so: it is skipped on a developer's machine, and fails where CI is
// set, as it is where a change is accepted or not.
func InstallSDKs(t testing.TB) *SDKs {
	t.Helper()
	dir, err := installSDKs()
	switch {
	case err == nil:
		return &SDKs{dir}
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return nil
}

// installedIn is the directory of the clients, once there is one.
var installedIn string

var installSDKs = sync.OnceValues(func() (string, error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("llmtest: no %s in PATH: install Node 20 or later with npm (https://nodejs.org) to test with the official clients", program)
		}
	}
	version, err := exec.Command("node", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("llmtest: node --version: %w", err)
	}
	// Debian 12 has 18, with which they hang after some aborted requests.
	var major int
	if _, err := fmt.Sscanf(string(version), "v%d.", &major); err != nil || major < 20 {
		return "", fmt.Errorf("llmtest: node is %s: install Node 20 or later (https://nodejs.org) to test with the official clients", strings.TrimSpace(string(version)))
	}
	dir, err := os.MkdirTemp("", "llmtest")
	if err != nil {
		return "", err
	}
	installedIn = dir
	for _, name := range []string{"package.json", "package-lock.json", "drive.mjs"} {
		data, err := nodeFiles.ReadFile("node/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			return "", err
		}
	}
	cmd := exec.Command("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--fetch-timeout=60000", "--fetch-retries=2")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("llmtest: npm ci: %v; the official clients come from npm's registry, which must be reachable once:\n%s", err, out)
	}
	return dir, nil
})

// RemoveSDKs removes what InstallSDKs has installed, at the end of a process.
func RemoveSDKs() {
	if installedIn != "" {
		_ = os.RemoveAll(installedIn)
	}
}

// Drive plays scenarios, all at once, and returns what became of the requests of
// each.
func (s *SDKs) Drive(t testing.TB, scenarios ...Scenario) [][]Run {
	t.Helper()
	text, err := json.Marshal(scenarios)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), driveTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "drive.mjs")
	cmd.Dir = s.dir
	var failed bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(text), &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("llmtest: node: %v\n%s\n%.2000s\nscenarios %.2000s", err, failed.String(), out, text)
	}
	runs := make([][]Run, len(scenarios))
	for i, scenario := range scenarios {
		runs[i] = make([]Run, max(1, scenario.Times))
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		if err := read(runs, lines.Bytes()); err != nil {
			t.Fatalf("llmtest: %v in %.500q", err, lines.Text())
		}
	}
	return runs
}

// One is Drive for a scenario of one request.
func (s *SDKs) One(t testing.TB, scenario Scenario) Run {
	t.Helper()
	return s.Drive(t, scenario)[0][0]
}

// read takes in one line of what the driver prints.
func read(runs [][]Run, line []byte) error {
	var said struct {
		Is            string
		Scenario, Run int
		At            int64
		Data          json.RawMessage
		Text          string
		Chunks        int
		Usage         json.RawMessage
		Finish        string
		Aborted       bool
		Status        int
		Retry         string
	}
	if err := json.Unmarshal(line, &said); err != nil {
		return err
	}
	run := &runs[said.Scenario][said.Run]
	switch said.Is {
	case "attempt":
		run.Attempts = append(run.Attempts, Attempt{time.Duration(said.At) * time.Millisecond, said.Status, said.Retry})
		return nil
	case "chunk":
		run.Chunks = append(run.Chunks, said.Data)
		return nil
	case "error":
		run.Error = new(ClientError)
		if err := json.Unmarshal(line, run.Error); err != nil {
			return err
		}
	}
	run.Count, run.Text, run.Finish, run.Usage, run.Aborted = said.Chunks, said.Text, said.Finish, said.Usage, said.Aborted
	return nil
}
