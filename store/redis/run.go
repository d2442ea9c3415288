package redis

import (
	"sync"
	"time"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/store"
)

// takeCall is the call that decides requests.
func (k *keys) takeCall(wait time.Duration, requests []store.Request) *call {
	c := newCall(kindTake, wait, len(requests))
	var h clientHash
	for i := range requests {
		r := &requests[i]
		if i == 0 || r.Client != requests[i-1].Client {
			h = k.hash(r.Client)
		}
		c.items[i].key = k.key(&r.Key, &h)
		c.items[i].packRequest(r)
	}
	return c
}

// refundCall is the call that refunds units.
func (k *keys) refundCall(wait time.Duration, refunds []store.Refund) *call {
	c := newCall(kindRefund, wait, len(refunds))
	var h clientHash
	for i := range refunds {
		r := &refunds[i]
		if i == 0 || r.Client != refunds[i-1].Client {
			h = k.hash(r.Client)
		}
		c.items[i].key = k.key(&r.Key, &h)
		c.items[i].packRefund(r)
	}
	return c
}

// run is a run of the script under construction: the calls that it decides one
// after the other. Runs are used again.
type run struct {
	script *script
	places map[string]int // of keys in KEYS, from 1
	keys   []string
	packed []byte
	args   []any
}

var runPool = sync.Pool{New: func() any { return &run{places: make(map[string]int)} }}

// release lets the memory be used for another run.
func (r *run) release() {
	clear(r.places)
	clear(r.keys)
	clear(r.args)
	r.script, r.keys, r.packed, r.args = nil, r.keys[:0], r.packed[:0], r.args[:0]
	runPool.Put(r)
}

// add appends a call.
func (r *run) add(c *call) {
	r.script = c.script()
	ofWindow := r.script == windowScript
	if ofWindow {
		r.packed = append(r.packed, c.kind, byte(len(c.items)>>8), byte(len(c.items)))
	}
	for i := range c.items {
		it := &c.items[i]
		place, known := r.places[it.key]
		if !known {
			r.keys = append(r.keys, it.key)
			place = len(r.keys)
			r.places[it.key] = place
		}
		r.packed = append(r.packed, byte(place>>8), byte(place))
		if ofWindow {
			r.packed = append(r.packed, it.packed[:]...)
		}
		if it.bans {
			r.packed = append(r.packed, it.block[:]...)
		}
		r.packed = append(r.packed, it.spent...)
	}
}

// command is what is sent. Without a call it loads the script where it is not
// loaded, and does nothing else.
func (r *run) command() []any {
	sha := scriptSHA
	if r.script != nil {
		sha = r.script.sha
	}
	r.args = append(r.args[:0], "evalsha", sha, len(r.keys))
	for i := range r.keys {
		r.args = append(r.args, &r.keys[i])
	}
	r.args = append(r.args, r.packed)
	return r.args
}
