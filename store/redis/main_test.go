package redis

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestMain fails if the library logged anything during the tests, servers that
// are down included: its logger is the whole process's, not ours to redirect,
// and its lines are not limited in number. One line is no fault: a store that is closed
// closes connections whose replies are just coming in, each once.
func TestMain(m *testing.M) {
	flag.Parse()
	if runtime.GOMAXPROCS(0) < 4 {
		_ = flag.Set("test.parallel", "4") // they sleep more than they compute
	}
	logged := &lines{}
	redis.SetLogger(logged)
	code := m.Run()
	logged.mu.Lock() // stores of the last tests may still be at work
	for _, line := range logged.list {
		if strings.HasSuffix(line, "state changed by hook to CLOSED, closing it") {
			continue
		}
		fmt.Println("the library logged:", line)
		code = 1
	}
	os.Exit(code)
}

type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) Printf(_ context.Context, format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, fmt.Sprintf(format, v...))
}
