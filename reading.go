package distributedratelimit

import (
	"cmp"
	"sync"

	"go.uber.org/zap"

	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/internal/keys"
	"github.com/caddy-distributed-ratelimit/distributed-ratelimit/ipident"
)

// This file is about what zones read of a request: the key, the plan and the cost, and
// what becomes of a request that does not have them.

// reader reads the keys and values of one request.
type reader struct {
	keys.Builder
	probe *probe // of an evaluation that only explains; else nil
}

// parseKey puts together what tells the zone's clients apart. Mistakes in other words than
// key are for check to find.
func (z *Zone) parseKey() (keys.Key, error) {
	t, err := keys.Parse(z.Key)
	return keys.Key{
		Template:         t,
		Normal:           keys.NewNormalization(z.KeyNormalize, &t),
		Mask:             keys.Mask{V4: z.ipv4Prefix(), V6: z.ipv6Prefix()},
		AddressWhenEmpty: z.whenEmpty(&t) == emptyKeyClient,
	}, err
}

// normalization is that of a zone without mistakes.
func (z *Zone) normalization() keys.Normalization {
	key, _ := z.parseKey()
	return key.Normal
}

// whenEmpty is what to do when a key of the zone comes out empty. The address is no
// substitute for what stands in a body, as clients can write bodies in which it is
// not found.
func (z *Zone) whenEmpty(key *keys.Template) string {
	if z.OnEmptyKey == "" && key.ReadsBody() {
		return emptyKeyDeny
	}
	return cmp.Or(z.OnEmptyKey, emptyKeyClient)
}

// keyed is what became of the key of a request.
type keyed uint8

const (
	keyFound   keyed = iota
	keySkipped       // it is empty: the zone does not apply
	keyDenied        // it is empty: the zone refuses
)

// client returns the key of a request, unless it is empty and on_empty_key says
// otherwise.
func (z *Zone) client(from *reader, c *charges) (string, keyed) {
	bytes, empty, lacked := from.Key(&z.key, c.client)
	if lacked != keys.LackNothing && !from.probe.lacks(z, "key", lacked) {
		z.counters.emptyKey(lacked)
		z.explain("key", &z.key.Template, lacked)
	}
	if empty {
		switch onEmpty := z.whenEmpty(&z.key.Template); {
		case onEmpty == emptyKeyDeny, z.key.ReadsBody() && lacked != keys.LackMissing:
			// What a body holds that cannot be read without doubt is not missing.
			return "", keyDenied
		case onEmpty == emptyKeySkip:
			return "", keySkipped
		}
		bytes = from.Address(c.client, z.key.Mask)
	}
	return c.text(bytes), keyFound
}

// readable returns a key of the request as a person would write it. key is what client
// returned; if that is nothing, because the zone refuses all, it is the values that would
// be in a key.
func (z *Zone) readable(from *reader, client ipident.Result, key string) string {
	if key == "" {
		return bounded(z.key.ValuesOf(&from.Builder, client))
	}
	return z.key.Readable(&from.Builder, client, key)
}

// readWord is a word of a zone that reads a value.
type readWord uint8

const (
	readCost readWord = iota
	readTier
)

// readWords are their names.
var readWords = [...]string{readCost: "cost", readTier: "tier"}

func (w readWord) String() string { return readWords[w] }

// replaces counts a value that a default or a bound stands for.
func (z *Zone) replaces(from *reader, word readWord, t *keys.Template, lacked keys.Lack) {
	if from.probe.lacks(z, word.String(), lacked) {
		return
	}
	z.counters.replace(word, lacked)
	z.explain(word.String(), t, lacked)
}

// explanations are the warnings about what a zone reads from requests, each given
// once.
type explanations struct{ unknown, unauthenticated sync.Once }

// explain warns of a word of the zone for which requests have no value, if that
// may be a mistake in the configuration.
func (z *Zone) explain(word string, t *keys.Template, lacked keys.Lack) {
	if lacked == keys.LackUnknown {
		z.explained.unknown.Do(func() {
			z.logger.Warn("nobody knows a placeholder of this "+word+", so that it is empty; correct its name, "+
				"or put the directive that sets it before distributed_ratelimit",
				zap.String("zone", z.Name), zap.String(word, t.Text()))
		})
	}
	if lacked == keys.LackMissing && t.Authenticated() {
		z.explained.unauthenticated.Do(func() {
			z.logger.Warn("nobody was authenticated when this "+word+" was read, so that it is empty; if that is not so for visitors only, "+
				"write authentication and then distributed_ratelimit into a route, which keeps their order: outside of one, limits come first",
				zap.String("zone", z.Name), zap.String(word, t.Text()))
		})
	}
}
