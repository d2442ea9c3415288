-- Decides all requests of one call, or refunds units: the twin of store.Window.
-- A change to one is a change to both.
--
-- KEYS     the log of each request or refund, all of one Cluster slot. Only
--          refunds may name one twice.
-- ARGV[1]  'take' or 'refund', then for each key
--   take   one string, like the reply: window (7 bytes), limit, need and
--          lease (6 each), lease span (7), shadow (1 byte, 0 or 1), and what is
--          unreported: age (7) and units (6) of each
--   refund window, stamp, mark, units, and origin: the identity of the data that
--          the units were charged in, 0 if it is not known
-- Reply    one string (a reply of many integers costs the server more than
--          all the arithmetic), with for each key
--   take   granted (1 byte, 0 or 1), lease and remaining (6 each), reset,
--          retry after, stamp and mark (7 each); the last two are 0 if
--          nothing was charged
--   refund the units that went back (6 bytes)
--
-- Times are microseconds of the server's clock.
--
-- A log is a string: mark, total, first stamp of the last entry, then the
-- entries, each a stamp and its units. A time takes 7 bytes, since 6 would have
-- sufficed only until 1978; units take 6. A log may end in 15 bytes more, which
-- its length shows, since no number of entries is as long: a time, the time until
-- which they are to be kept, and a byte. They are for later versions, and are kept
-- as they are. Any other change of the format changes the version in the
-- keys, too.
--
-- Nothing is written before everything is decided: after any error, nothing was
-- written.
--
-- Numbers and formats stand where they are used, because a local that
-- functions share is bound again at every call, which costs the server more
-- than the arithmetic. They are:
--
--   20        bytes of a header, '>I7I6I7'
--   13        bytes of an entry, or of what is unreported, '>I7I6'
--   33        bytes of a request with nothing unreported
--   64        the largest limit whose log keeps every stamp apart, and the
--             fraction of a window within which others merge
--   68        the most entries
--   2000000   how far ahead a stamp may lie
--   281474976710655   the most units of a log, which fit 6 bytes

local pack, unpack, sub, call = struct.pack, struct.unpack, string.sub, redis.call

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- tails are the 15 bytes at the end of logs that have them, by key; false if none
-- has.
local tails = false

-- parse returns a log, s or what is stored at key, as of now: s, from, upto,
-- stamp, units, total, first, mark, lowered. The entries before the last one stay
-- packed, at s[from..upto]; stamp and units are the last one's. A mark of 0 means
-- that nothing counts.
local function parse(key, window, s)
  if not s then
    s = redis.pcall('GET', key)
    if type(s) == 'table' then
      -- Another type is no log, and SET will replace it. Any other error is
      -- raised again.
      if not string.find(s.err, 'WRONGTYPE', 1, true) then
        redis.call('GET', key)
      end
      s = false
    end
  end
  local size = s and #s - 20 or 0
  if size % 13 == 2 and size > 13 then
    tails = tails or {}
    tails[key] = sub(s, -15)
    s, size = sub(s, 1, -16), size - 15
  end
  if size < 13 or size % 13 ~= 0 or size > 68 * 13 then
    return '', 1, 0, 0, 0, 0, 0, 0, false
  end

  local mark, total, first, stamp, units = unpack('>I7I6I7I7I6', s)
  local from, upto = 20 + 1, size + 20 - 13
  while stamp + window <= now do
    if from > upto then
      return '', 1, 0, 0, 0, 0, 0, 0, false
    end
    total = total - units
    from = from + 13
    stamp, units = unpack('>I7I6', s, from)
  end
  if from <= upto then
    stamp, units = unpack('>I7I6', s, upto + 1)
  end

  local latest = now + 2000000
  if stamp <= latest then
    return s, from, upto, stamp, units, total, first, mark, false
  end
  -- The clock stepped back: what lies further ahead than any charge could
  -- becomes one entry, and earlier charges can no longer be refunded.
  while from <= upto do
    local earlier, more = unpack('>I7I6', s, upto - 13 + 1)
    if earlier < latest then
      break
    end
    units = units + more
    upto = upto - 13
  end
  return s, from, upto, latest, units, total, latest, mark == now and now + 1 or now, true
end

-- encode returns a log as a string, and its time to live.
local function encode(window, middle, stamp, units, total, first, mark)
  local ttl = math.ceil((stamp + window - now) / 1000) + 1000
  return pack('>I7I6I7', mark, total, first) .. middle .. pack('>I7I6', stamp, units), ttl
end

-- tailed returns a log and its time to live with what it ends in.
local function tailed(key, value, ttl)
  local tail = tails[key]
  local rest = tail and unpack('>I7', tail, 8) - now or 0
  if rest <= 0 then
    return value, ttl
  end
  return value .. tail, math.max(ttl, math.ceil(rest / 1000) + 1000)
end

-- compact makes room in a full log: what comes close after an entry joins it.
-- It returns the entries before the last one, and its units and first stamp.
local function compact(middle, stamp, units, first, window)
  local kept, n, start, held = {}, 0, 0, 0
  for at = 1, #middle, 13 do
    local s, more = unpack('>I7I6', middle, at)
    if n > 0 and (s - start) * 64 < window then
      held = held + more
    else
      n, start, held = n + 1, s, more
    end
    kept[n] = pack('>I7I6', s, held)
  end
  if n > 0 and (stamp - start) * 64 < window then
    kept[n], units, first = nil, units + held, start
  end
  return table.concat(kept), units, first
end

local granted = true

-- decide decides one request. It returns its decision, what is then to be written
-- or false, and the time to live of that: first for the case that the call is
-- granted, then for the case that it is refused.
local function decide(i)
  local packed = ARGV[i + 1]
  local window, limit, need, lease, span, shadow = unpack('>I7I6I6I6I7I1', packed)
  local s, from, upto, stamp, units, total, first, mark, changed = parse(KEYS[i], window)
  if #packed > 33 then
    -- What is unreported counts from when it was spent, whether or not the call
    -- is granted.
    local middle = sub(s, from, upto)
    for j = 34, #packed, 13 do
      local age, more = unpack('>I7I6', packed, j)
      local spent = now - age
      if more > 281474976710655 - total then
        more = 281474976710655 - total
      end
      if age < window and more > 0 then
        changed = true
        total = total + more
        if mark == 0 then
          if unpack('>I7', pack('>I7', now)) ~= now then
            error('this server is built for 32 bits, which cannot hold a time in microseconds')
          end
          stamp, units, first, mark = spent, more, spent, now
        elseif spent <= stamp then
          -- It joins the first entry that is not older.
          local at, entry, others = 1, 0, 0
          while at <= #middle do
            entry, others = unpack('>I7I6', middle, at)
            if entry >= spent then
              break
            end
            at = at + 13
          end
          if at <= #middle then
            middle = sub(middle, 1, at - 1) .. pack('>I7I6', entry, others + more) .. sub(middle, at + 13)
          else
            units = units + more
          end
        else
          local near = limit > 64 and (spent - first) * 64 < window
          if not near and #middle >= (68 - 1) * 13 then
            middle, units, first = compact(middle, stamp, units, first, window)
          end
          if near or #middle >= (68 - 1) * 13 then
            stamp, units = spent, units + more
          else
            middle = middle .. pack('>I7I6', stamp, units)
            stamp, units, first = spent, more, spent
          end
        end
      end
    end
    s, from, upto = middle .. pack('>I7I6', stamp, units), 1, #middle
  end
  local free = limit - total
  local remaining = free > 0 and free or 0
  local reset = mark > 0 and stamp + window - now or 0
  local value, ttl = false, false
  if changed then
    value, ttl = encode(window, sub(s, from, upto), stamp, units, total, first, mark)
  end

  if need > 0 and need > free then
    if shadow == 0 then
      granted = false
    end
    local excess, retry = need - free, window
    local at = from
    while excess > 0 and at <= upto do
      local earlier, more = unpack('>I7I6', s, at)
      excess = excess - more
      retry = earlier + window - now
      at = at + 13
    end
    if excess > 0 then
      retry = excess <= units and stamp + window - now or window
    end
    local decision = pack('>I1I6I6I7I7I7I7', 0, 0, remaining, reset, retry, 0, 0)
    return decision, value, ttl, decision, value, ttl
  end

  local plain = false
  if #KEYS > 1 then
    plain = pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0)
  end
  if lease > free - need then
    lease = free - need
  end
  local more = need + lease
  if more <= 0 then
    local decision = plain or pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0)
    return decision, value, ttl, decision, value, ttl
  end

  local at = now
  if lease > 0 then
    at = now + span
  end
  total = total + more
  if mark == 0 then
    if unpack('>I7', pack('>I7', now)) ~= now then
      error('this server is built for 32 bits, which cannot hold a time in microseconds')
    end
    stamp, units, first, mark = at, more, at, now
  else
    if at < stamp then
      at = stamp
    end
    local near = at == stamp or (limit > 64 and (at - first) * 64 < window)
    if not near and upto - from + 1 >= (68 - 1) * 13 then
      s, units, first = compact(sub(s, from, upto), stamp, units, first, window)
      from, upto = 1, #s
      s = s .. pack('>I7I6', stamp, units)
    end
    if near or upto - from + 1 >= (68 - 1) * 13 then
      stamp, units = at, units + more
    else
      -- The last entry is s[upto+1..] as it was: one that was lowered is
      -- joined, for no charge is as far ahead.
      stamp, units, first, upto = at, more, at, upto + 13
    end
  end
  local charged = pack('>I7I6I7', mark, total, first) .. sub(s, from, upto) .. pack('>I7I6', stamp, units)
  local lives = math.ceil((stamp + window - now) / 1000) + 1000
  return pack('>I1I6I6I7I7I7I7', 1, lease, limit - total, stamp + window - now, 0, stamp, mark), charged, lives, plain, value, ttl
end

if ARGV[1] == 'take' then
  if #KEYS == 1 then
    -- The same as below, for most calls by far, without its tables.
    local decision, value, ttl, plain, lowered, lives = decide(1)
    if not granted then
      decision, value, ttl = plain, lowered, lives
    end
    if value then
      if tails then
        value, ttl = tailed(KEYS[1], value, ttl)
      end
      call('SET', KEYS[1], value, 'PX', ttl)
    end
    return decision
  end
  local decided = {}
  for i = 1, #KEYS do
    decided[i] = {decide(i)}
  end
  local case = granted and 1 or 4
  local reply = ''
  for i = 1, #KEYS do
    local d = decided[i]
    local value, ttl = d[case + 1], d[case + 2]
    if value then
      if tails then
        value, ttl = tailed(KEYS[i], value, ttl)
      end
      call('SET', KEYS[i], value, 'PX', ttl)
    end
    reply = reply .. d[case]
  end
  return reply
end

-- identity tells the data of this server from any other's, and from its own at
-- another time: a server that stands in for another may lack the latest charges,
-- and have others in their place. It is made of the run, which ends with the data
-- in memory, and of the history of writes, which begins anew when a replica
-- becomes the master: a server that was master before has the same run. It is 0
-- if the server does not tell.
local function identity()
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  if type(server) ~= 'string' or type(replication) ~= 'string' then
    return 0
  end
  local run, history = string.match(server, 'run_id:(%x+)'), string.match(replication, 'master_replid:(%x+)')
  if not run or not history then
    return 0
  end
  return tonumber(sub(redis.sha1hex(run .. history), 1, 13), 16)
end

-- Refunds: units leave the first entry that can hold them. What was charged in
-- other data stays: a copy of a log has the same mark, and the entry might hold
-- another client's units.
local here = false -- the identity, once it is needed
local values, lives, reply = {}, {}, ''
for i = 1, #KEYS do
  local key, a = KEYS[i], 5 * i - 3
  local window, given, back = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), 0
  local s, from, upto, stamp, units, total, first, mark, lowered = parse(key, window, values[key])
  local middle = sub(s, from, upto)
  local origin = tonumber(ARGV[a + 4])
  here = here or origin > 0 and identity()
  if (origin == 0 or origin == here) and mark > 0 and mark == tonumber(ARGV[a + 2]) and given + window > now and given <= stamp then
    local at = 1
    while at <= #middle and unpack('>I7I6', middle, at) < given do
      at = at + 13
    end
    back = tonumber(ARGV[a + 3])
    if at <= #middle then
      local earlier, more = unpack('>I7I6', middle, at)
      back = math.min(back, more)
      local rest = ''
      if back < more then
        rest = pack('>I7I6', earlier, more - back)
      end
      middle = sub(middle, 1, at - 1) .. rest .. sub(middle, at + 13)
    else
      back = math.min(back, units)
      units = units - back
      if units == 0 and #middle > 0 then
        -- The first stamp of the entry that is now the last one is not known;
        -- nothing but an equal stamp may join it.
        stamp, units = unpack('>I7I6', middle, #middle - 13 + 1)
        middle, first = sub(middle, 1, -13 - 1), 0
      end
    end
    total = total - back
  end
  if back > 0 or lowered then
    values[key], lives[key] = '', false
    if units > 0 then
      values[key], lives[key] = encode(window, middle, stamp, units, total, first, mark)
    end
  end
  reply = reply .. pack('>I6', back)
end
for key, value in pairs(values) do
  if tails and tails[key] then
    if not lives[key] then
      value, lives[key] = pack('>I7I6I7', 0, 0, 0), 1000
    end
    value, lives[key] = tailed(key, value, lives[key])
  end
  if lives[key] then
    call('SET', key, value, 'PX', lives[key])
  else
    redis.call('DEL', key)
  end
end
return reply
