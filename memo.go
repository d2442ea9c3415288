package distributedratelimit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"
)

// memo keeps the number of instances of a store in Caddy's storage, where it
// outlives the process: processes that start while the store is away have never
// seen each other, and each would grant the whole limit. It is safe for
// concurrent use.
type memo struct {
	mu      sync.Mutex
	backend *backend // of the configuration that runs, nil if none does
	known   int      // 0 if the number is not known
	written int
	writing bool // soon
	broken  bool // the storage has failed, and that was logged
}

// storage is the part of Caddy's storage that memo uses.
type storage interface {
	Store(ctx context.Context, key string, value []byte) error
	Load(ctx context.Context, key string) ([]byte, error)
}

const (
	// memoWait is how long loading a configuration waits for the storage. A
	// number that is read later counts from then on.
	memoWait = time.Second
	// memoPatience is how long the storage has for each call.
	memoPatience = 10 * time.Second
	// memoPause is how long a number is known before it is written: it changes
	// several times when many instances start.
	memoPause = 2 * time.Second
)

// memoKey is where the storage keeps how many instances shared a store.
func memoKey(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "distributed_ratelimit/instances/" + hex.EncodeToString(sum[:16])
}

// recall reads how many instances shared the store, as the last process knew. It
// waits for a second at most.
func (m *memo) recall(b *backend) {
	if b.storage == nil || b.lasting.Known() > 0 {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), memoPatience)
		defer cancel()
		value, err := b.storage.Load(ctx, memoKey(b.name))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		n, wrong := strconv.Atoi(strings.TrimSpace(string(value)))
		if err == nil && (wrong != nil || n < 1 || n > redis.MaxInstances) {
			err = fmt.Errorf("%.20q is not a number of instances", value)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if err != nil {
			m.failedLocked(b, err)
		} else if b.lasting.Recall(n) { // else the store knows better
			m.written = n
		}
	}()
	timer := time.NewTimer(memoWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// start has the number written into the storage of a configuration that runs
// from now on.
func (m *memo) start(b *backend) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.backend = b
	m.known = b.lasting.Known()
	m.writeLocked()
}

// stop ends what start began.
func (m *memo) stop(b *backend) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.backend == b {
		m.backend = nil
	}
}

// learn takes in how many instances there are.
func (m *memo) learn(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = n
	m.writeLocked()
}

// writeLocked has the number written soon, in the background.
func (m *memo) writeLocked() {
	if m.writing || m.backend == nil || m.backend.storage == nil || m.known == m.written {
		return
	}
	m.writing = true
	time.AfterFunc(memoPause, m.write)
}

func (m *memo) write() {
	m.mu.Lock()
	b, n := m.backend, m.known
	if b == nil || b.storage == nil {
		m.writing = false
		m.mu.Unlock()
		return
	}
	m.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), memoPatience)
	err := b.storage.Store(ctx, memoKey(b.name), []byte(strconv.Itoa(n)))
	cancel()

	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.failedLocked(b, err)
	}
	m.writing, m.written = false, n // after a failure, the next try is the next change
	m.writeLocked()
}

// failedLocked logs a failure once: the storage is no part of limiting.
func (m *memo) failedLocked(b *backend, err error) {
	if m.broken {
		return
	}
	m.broken = true
	b.logger.Warn("the number of instances cannot be kept in Caddy's storage; after a start without the store it is not known",
		zap.String("store", b.name), zap.Error(err))
}
