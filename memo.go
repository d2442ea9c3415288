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
	"time"

	"go.uber.org/zap"
)

// The number of instances outlives the process, in Caddy's storage: processes
// that start while the store is away would each grant the whole limit, since
// none of them has ever seen the others.

// storage is what is used of Caddy's storage.
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
	// memoPause is how long a number must have been known before it is
	// written: it changes several times when many instances start.
	memoPause = 2 * time.Second
)

// memoKey is where the storage keeps how many instances shared a store.
func memoKey(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "distributed_ratelimit/instances/" + hex.EncodeToString(sum[:16])
}

// recall reads how many instances shared the store, as the last process knew.
// It waits for that for a while only.
func (h *health) recall(b *backend) {
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
		if err == nil && (wrong != nil || n < 1 || n > maxInstances) {
			err = fmt.Errorf("%.20q is not a number of instances", value)
		}
		if err != nil {
			h.memoFailed(b, err)
			return
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.instances.CompareAndSwap(0, int64(n)) { // the store knows better
			h.written = int64(n)
		}
	}()
	timer := time.NewTimer(memoWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// memorizeLocked has the number of instances written soon, in the background.
func (h *health) memorizeLocked() {
	b := h.leaderLocked()
	if h.writing || b == nil || !b.started || b.storage == nil || h.instances.Load() == h.written {
		return
	}
	h.writing = true
	time.AfterFunc(memoPause, h.memorize)
}

// memorize writes the number of instances for processes to come.
func (h *health) memorize() {
	h.mu.Lock()
	b, n := h.leaderLocked(), h.instances.Load()
	if b == nil || !b.started || b.storage == nil {
		h.writing = false
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), memoPatience)
	err := b.storage.Store(ctx, memoKey(b.name), []byte(strconv.FormatInt(n, 10)))
	cancel()
	if err != nil {
		h.memoFailed(b, err)
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	h.writing, h.written = false, n // what cannot be written is left until it changes
	h.memorizeLocked()
}

// memoFailed is logged once: the storage is no part of limiting.
func (h *health) memoFailed(b *backend, err error) {
	if h.memoBroken.CompareAndSwap(false, true) {
		b.logger.Warn("the number of instances cannot be kept in Caddy's storage; after a start without the store it is not known",
			zap.String("store", b.name), zap.Error(err))
	}
}
