package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// sentinelTime is how long one Sentinel has to say who the master is.
const sentinelTime = 250 * time.Millisecond

// dialMaster returns a dialer of whichever server is the master when it
// dials. Connections to one that is not any more are broken off by the
// Sentinels, or when a write is refused on them.
func dialMaster(o Options, secrets *secrets) dialer {
	var first atomic.Int64 // the Sentinel that knew last time
	return func(ctx context.Context) (net.Conn, error) {
		var failures []error
		begin := int(first.Load())
		for i := range o.Sentinels {
			i = (begin + i) % len(o.Sentinels)
			address, err := askSentinel(ctx, o, secrets, o.Sentinels[i])
			if err != nil {
				failures = append(failures, fmt.Errorf("sentinel %s: %w", o.Sentinels[i], err))
				continue
			}
			first.Store(int64(i))
			conn, err := dialTo(o, secrets, "tcp", address)(ctx)
			if err != nil {
				return nil, fmt.Errorf("master %s: %w", address, err)
			}
			return conn, nil
		}
		return nil, errors.Join(failures...)
	}
}

// askSentinel asks one Sentinel for the address of the master.
func askSentinel(ctx context.Context, o Options, secrets *secrets, sentinel string) (string, error) {
	now := secrets.get()
	client := redis.NewSentinelClient(&redis.Options{
		Addr:     sentinel,
		Username: now.SentinelUsername,
		Password: now.SentinelPassword,
		Dialer:   neverFailing(dialTo(o, secrets, "tcp", sentinel)),

		// As for the servers, see newClient.
		MaxRetries:               -1,
		DialerRetries:            1,
		DialTimeout:              o.DialTimeout,
		ReadTimeout:              sentinelTime,
		WriteTimeout:             sentinelTime,
		ContextTimeoutEnabled:    true,
		PoolSize:                 1,
		Protocol:                 2,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		DisableIdentity:          true,
	})
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, sentinelTime)
	defer cancel()
	reply, err := client.GetMasterAddrByName(ctx, o.MasterName).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", fmt.Errorf("it knows no master of the name %q", o.MasterName)
	case err != nil:
		return "", err
	case len(reply) != 2:
		return "", errReply
	}
	return net.JoinHostPort(reply[0], reply[1]), nil
}
