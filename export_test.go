package distributedratelimit

import "github.com/caddy-distributed-ratelimit/distributed-ratelimit/store/redis"

// Options is what the store is opened with.
func (s *RedisStore) Options() (redis.Options, error) { return s.options() }
