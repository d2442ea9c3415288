package redis

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// beatTime is for how long a heartbeat waits at most, unless the timeout is
// longer: a dead connection keeps the keeper from trying another one.
const beatTime = time.Second

// newNode returns a server and starts its keeper, which ends with ctx.
func newNode(ctx context.Context, env *environment, name, key string, dial dialer) *node {
	n := bareNode(env, name, key, dial)
	go n.keep(ctx)
	return n
}

// keep sends heartbeats until ctx ends, and does what the [keeper] makes of
// them. Then it leaves, and closes the node.
func (n *node) keep(ctx context.Context) {
	defer n.close()
	var k keeper
	for {
		client := n.use()
		b := n.heartbeat(client, k.last.Condition != store.Up)
		well := ctx.Err() == nil && n.follow(ctx, client, &k, &b)
		n.release(client)
		if !n.rest(ctx, &k, well) {
			if b.err == nil {
				n.leave()
			}
			return
		}
	}
}

// follow does what follows from a heartbeat, and reports whether all is well.
func (n *node) follow(ctx context.Context, client *client, k *keeper, b *beat) (well bool) {
	if b.lost != "" {
		n.env.watchers.report(ctx, n.name, k.loss(b.lost)) // before calls pass again
		n.env.lives.doubt("")
	}
	b.breaker = n.breaker.tried(b.now, b.took, b.failure())
	b.overdue = time.Duration(n.overdue.Load())
	v := k.judge(b)
	if v.silent {
		n.env.presence.silent(*n.key.Load())
		n.env.lives.silent(*n.key.Load())
	}
	if v.hangUp {
		n.hangUp(client)
	}
	if v.moved {
		n.env.moved()
	}
	for _, r := range v.reports {
		n.env.watchers.report(ctx, n.name, r)
	}
	return v.well
}

// rest sleeps until the next heartbeat, or reports false if ctx ends before.
func (n *node) rest(ctx context.Context, k *keeper, well bool) bool {
	if well {
		if !sleep(ctx, beatEvery*3/4+rand.N(beatEvery/2), n.wake) {
			return false
		}
		if open, _ := n.breaker.isOpen(); !open {
			return true
		}
	}
	// Not all instances at once, and nobody can end it early.
	pause := k.nextPause()
	return sleep(ctx, pause+rand.N(pause/2), nil)
}

// sleep sleeps, or reports false if ctx ends before that is over.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-timer.C:
	}
	return true
}

// heartbeat tells the server that this instance is alive. It loads the script
// with it if the server may not have it.
func (n *node) heartbeat(client *client, load bool) beat {
	wait := n.breaker.disappointed()
	if wait == 0 {
		wait = time.Duration(n.longest.Load())
	}
	life := max(n.env.options.Timeout, min(3*wait, beatTime))
	key := *n.key.Load()
	lives := n.env.lives.tell(key)
	cmd, number := n.env.presence.command(key, false, lives...)
	reply, failure := n.exchange(client, life, load, cmd)
	b := beat{now: time.Now()}
	if failure != nil {
		b.replied, b.err = failure.Kind == store.KindReply, failure.Err
		return b
	}
	n.breaker.seen.Store(true)
	b.replied, b.took = true, b.now.Sub(cmd.written)
	about := ""
	if len(lives) > 0 && len(reply) > beatReply {
		reply, about = reply[:beatReply], reply[beatReply:]
	}
	if b.lost, b.err = n.env.presence.heard(key, reply, number, b.now); b.err == nil {
		n.found(client, originIn(reply))
	}
	if len(lives) > 0 && b.err == nil {
		b.err = n.env.lives.heard(key, lives[1], about, originIn(reply), b.now)
	}
	return b
}

// leave tells the server that this instance has ended.
func (n *node) leave() {
	client := n.use()
	defer n.release(client)
	cmd, _ := n.env.presence.command(*n.key.Load(), true)
	_, _ = n.exchange(client, n.env.options.Timeout, false, cmd) // else it counts for a while yet
}

// exchange sends a beat and returns the reply to it.
func (n *node) exchange(client *client, life time.Duration, load bool, cmd *beatCommand) (string, *store.Error) {
	pipe := client.living(life).Pipeline()
	var loaded *redis.StringCmd
	if load {
		loaded = redis.NewStringCmd(background, "script", "load", source)
		_ = pipe.Process(background, loaded) // never fails: it only collects
	}
	_ = pipe.Process(background, cmd)
	_, err := pipe.Exec(background)
	switch {
	case cmd.written.IsZero():
		return "", n.classify(err, false)
	case loaded != nil && unauthenticated(loaded.Err()):
		// The server has hung up, which is all that the beat itself tells.
		return "", n.classify(loaded.Err(), true)
	case isRedirect(cmd.Err()) && n.env.redirect != nil:
		return "", &store.Error{Kind: store.KindReply, Unexecuted: true, Err: errMoved}
	case isReadOnly(cmd.Err()):
		n.hangUp(client) // the master is elsewhere by now
		return "", n.classify(cmd.Err(), true)
	case cmd.Err() != nil:
		return "", n.classify(cmd.Err(), true)
	case loaded != nil && loaded.Err() != nil:
		return "", n.classify(loaded.Err(), true)
	}
	return cmd.Val(), nil
}

// classify is [classify] of a beat, with the remedy for a server that has never
// answered.
func (n *node) classify(err error, written bool) *store.Error {
	if hungUp(err) && !n.breaker.seen.Load() {
		err = fmt.Errorf("%w; the server hangs up without an answer: if it expects TLS, write rediss:// or tls", err)
	}
	return classify(n.env.secrets, err, written)
}
