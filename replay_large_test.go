package distributedratelimit

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/logtest"
)

// replayBytes is how long the log of TestReplayLargeLog is. make soak has 1 GiB.
var replayBytes = flag.Int64("replay-bytes", 8<<20, "how long the log of TestReplayLargeLog is")

// heapWatcher is a reader that looks at the memory in use now and then.
type heapWatcher struct {
	io.Reader
	read, next int64
	most       uint64
}

func (h *heapWatcher) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if h.read += int64(n); h.read >= h.next {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		h.most, h.next = max(h.most, stats.HeapInuse), h.read+4<<20
	}
	return n, err
}

// However long a log is, its replay takes a bounded amount of memory.
func TestReplayLargeLog(t *testing.T) {
	config := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, []byte("example.com {\n\tdistributed_ratelimit 100 1m\n\trespond ok\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, to := io.Pipe()
	go func() {
		_, err := logtest.Write(to, logtest.Options{Seed: 1, Bytes: *replayBytes})
		to.CloseWithError(err)
	}()
	defer log.Close()
	watched := &heapWatcher{Reader: log}
	cmd := replayCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(watched)
	cmd.SetArgs([]string{"--config", config, "--suggest", "99.9%", "-"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "would be refused") || watched.read < *replayBytes {
		t.Errorf("of %d bytes, %d were read:\n%s", *replayBytes, watched.read, out.String())
	}
	const bound = 320 << 20
	t.Logf("%d MiB in memory at most; %s", watched.most>>20, out.String()[strings.LastIndex(out.String(), "\n\n")+2:])
	if watched.most > bound {
		t.Errorf("%d MiB are in memory, want at most %d", watched.most>>20, bound>>20)
	}
}
