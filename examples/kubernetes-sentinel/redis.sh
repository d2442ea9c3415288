#!/bin/sh
# What the pods of Redis and of the Sentinels run: see README.md.
#
#   redis.sh server      becomes Redis, a replica of the master that the Sentinels name
#   redis.sh sentinel    becomes a Sentinel
#   redis.sh ready       fails unless this Redis has all data: a readiness probe
#   redis.sh quorum      fails unless this Sentinel could replace the master: another
#   redis.sh hand-over   lets another Redis be the master, before this one ends
#
# POD is the name of the pod. Further arguments are for redis-server.
set -eu
umask 077
trap 'exit 143' TERM # while it waits, it has the process id 1, which ignores signals

name=limits
servers='redis-0.redis redis-1.redis redis-2.redis'
sentinels='sentinel-0.sentinel sentinel-1.sentinel sentinel-2.sentinel'
self="$POD.${POD%-*}"

# secret NAME prints a password. It stands in configuration files without quotes.
secret() {
	value=$(cat "/run/secrets/redis/$1")
	case $value in
	'' | *[!A-Za-z0-9._-]*)
		echo "redis.sh: $1 is empty, or not of letters, digits and ._- alone; make one with: openssl rand -hex 32" >&2
		return 1
		;;
	esac
	echo "$value"
}

# ask HOST PORT COMMAND... prints the reply, and fails if it is an error, or late: nobody
# answers at the address of a pod that is gone.
ask() {
	host=$1 port=$2
	shift 2
	REDISCLI_AUTH=$admin timeout 2 redis-cli -e -h "$host" -p "$port" "$@" 2>/dev/null
}

# named prints the host that another Sentinel names as the master.
named() {
	for sentinel in $sentinels; do
		[ "$sentinel" != "$self" ] || continue
		if reply=$(ask "$sentinel" 26379 sentinel get-master-addr-by-name $name) && [ -n "$reply" ]; then
			echo "$reply" | head -n 1
			return
		fi
	done
	return 1
}

# acting prints the host of a Redis that says it is the master.
acting() {
	for server in $servers; do
		if reply=$(ask "$server" 6379 role) && [ "$(echo "$reply" | head -n 1)" = master ]; then
			echo "$server"
			return
		fi
	done
	return 1
}

server() {
	# Never a guess: two masters would both grant, and one of them forget all of it.
	until master=$(named); do
		echo 'redis.sh: no Sentinel names a master yet' >&2
		sleep 1
	done
	{
		cat /etc/redis/redis.conf
		echo "requirepass $admin"
		echo "masterauth $admin"
		# The rights that docs/running-redis.md lists. Users are not replicated.
		echo "user caddy on >$caddy resetkeys ~drl:* resetchannels -@all" \
			'+evalsha +eval +script|load +time +get +mget +set +del +info'
		echo "replica-announce-ip $self"
		[ "$master" = "$self" ] || echo "replicaof $master 6379"
	} >/run/redis/redis.conf
	exec redis-server /run/redis/redis.conf "$@"
}

sentinel() {
	# What it has learnt and voted stands in its file, which lasts as long as the pod. The
	# file of a new pod starts with what others know, or else with the first Redis.
	if [ ! -e /run/redis/sentinel.conf ]; then
		master=$(named || acting || echo redis-0.redis)
		{
			cat /etc/redis/sentinel.conf
			echo "requirepass $admin"
			echo "sentinel sentinel-pass $admin"
			echo "user caddy on >$caddy resetchannels -@all +sentinel|get-master-addr-by-name"
			echo "sentinel announce-ip $self"
			echo "sentinel monitor $name $master 6379 2"
			echo "sentinel auth-pass $name $admin"
		} >/run/redis/sentinel.new
		mv /run/redis/sentinel.new /run/redis/sentinel.conf
	fi
	exec redis-server /run/redis/sentinel.conf --sentinel "$@"
}

ready() {
	ask 127.0.0.1 6379 ping >/dev/null # an error while it loads
	case $(ask 127.0.0.1 6379 info replication) in
	*role:master* | *master_link_status:up*) ;;
	*) exit 1 ;;
	esac
}

hand_over() {
	tries=0
	until master=$(named) && [ "$master" != "$self" ]; do
		tries=$((tries + 1))
		[ $tries -le 10 ] || exit 1 # it ends all the same, and is missed then
		for sentinel in $sentinels; do
			if ask "$sentinel" 26379 sentinel failover $name >/dev/null; then break; fi
		done
		sleep 1
	done
}

admin=$(secret ADMIN_PASSWORD)
caddy=$(secret CADDY_PASSWORD)
command=$1
shift
case $command in
server) server "$@" ;;
sentinel) sentinel "$@" ;;
ready) ready ;;
quorum) ask 127.0.0.1 26379 sentinel ckquorum $name >/dev/null ;;
hand-over) hand_over ;;
*)
	echo "redis.sh: $command is none of server, sentinel, ready, quorum, hand-over" >&2
	exit 2
	;;
esac
