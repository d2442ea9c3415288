-- Decides calls, and refunds what calls have charged: the twin of store.Window.
-- A change to one is a change to both.
--
-- A run carries many calls, which are decided one after the other, each as if it
-- were alone: a script costs the server about as much for being one as for
-- deciding. Each call is granted or refused as a whole.
--
-- KEYS     the logs of all calls, each once, all of one Cluster slot
-- ARGV[1]  the calls, packed like the reply, each of them
--   take     0 (1 byte), the number of requests (2); for each request its key's
--            place in KEYS (2), window (7), limit, units and lease (6 each), lease
--            span (7), shadow (1, 0 or 1), the number of entries that are
--            unreported (1), and of each of these age (7) and units (6)
--   refund   1 (1 byte), the number of refunds (2); for each of them its key's place
--            in KEYS (2), window, stamp and mark (7 each), units (6), origin (7)
-- Reply    one string (a reply of many integers costs the server more than all
--          the arithmetic), for each call in its turn
--   take     for each request granted (1 byte, 0 or 1), lease and remaining (6
--            each), reset, retry after, stamp and mark (7 each); the last two
--            are 0 if nothing was charged
--   refund   for each the units that went back (6)
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
--   36        bytes of a request without what is unreported
--   64        the largest limit whose log keeps every stamp apart, and the
--             fraction of a window within which others merge
--   68        the most entries
--   2000000   how far ahead a stamp may lie
--   281474976710655   the most units of a log, which fit 6 bytes

local spread = unpack
local pack, unpack, sub, call = struct.pack, struct.unpack, string.sub, redis.call

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local run, at = ARGV[1], 1 -- what is read next of the run

-- only is what is at the only one of KEYS, or values are what is at each, false for
-- nothing: as far as the run has come. lives are the times to live of what is to be
-- written, 0 to delete it. tails are the 15 bytes at the end of logs that have them,
-- false if no log has.
local only, values, lives, tails = false, false, false, false

if #KEYS == 1 then
  only = redis.pcall('GET', KEYS[1])
  if type(only) == 'table' then
    -- Another type is no log, and SET will replace it. Any other error is raised
    -- again.
    if not string.find(only.err, 'WRONGTYPE', 1, true) then
      call('GET', KEYS[1])
    end
    only = false
  end
elseif #KEYS > 1 then
  values = call('MGET', spread(KEYS)) -- to which another type is nothing
end

-- parse returns the log of a key as of now: s, from, upto, stamp, units, total,
-- first, mark, lowered. The entries before the last one stay packed, at
-- s[from..upto]; stamp and units are the last one's. A mark of 0 means that
-- nothing counts.
local function parse(key, window)
  local s = only
  if values then
    s = values[key]
  end
  local size = s and #s - 20 or 0
  if size % 13 == 2 and size > 13 then
    tails = tails or {}
    tails[key] = sub(s, -15)
    s, size = sub(s, 1, -16), size - 15
    if values then
      values[key] = s
    end
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

-- decide decides one request of a call, which is alone if it is the only one. It
-- returns its key, its decision, and what is then to be written or false, and the
-- time to live of that: first for the case that the call is granted, then for
-- the case that it is not.
local function decide(alone)
  local key, window, limit, need, lease, span, shadow, unreported = unpack('>I2I7I6I6I6I7I1I1', run, at)
  at = at + 36
  local s, from, upto, stamp, units, total, first, mark, changed = parse(key, window)
  if unreported > 0 then
    -- What is unreported counts from when it was spent, whether or not the call
    -- is granted.
    local middle = sub(s, from, upto)
    for _ = 1, unreported do
      local age, more = unpack('>I7I6', run, at)
      at = at + 13
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
          local place, entry, others = 1, 0, 0
          while place <= #middle do
            entry, others = unpack('>I7I6', middle, place)
            if entry >= spent then
              break
            end
            place = place + 13
          end
          if place <= #middle then
            middle = sub(middle, 1, place - 1) .. pack('>I7I6', entry, others + more) .. sub(middle, place + 13)
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
    value = pack('>I7I6I7', mark, total, first) .. sub(s, from, upto) .. pack('>I7I6', stamp, units)
    ttl = math.ceil((stamp + window - now) / 1000) + 1000
  end

  if need > 0 and need > free then
    if shadow == 0 then
      granted = false
    end
    local excess, retry = need - free, window
    local place = from
    while excess > 0 and place <= upto do
      local earlier, more = unpack('>I7I6', s, place)
      excess = excess - more
      retry = earlier + window - now
      place = place + 13
    end
    if excess > 0 then
      retry = excess <= units and stamp + window - now or window
    end
    local decision = pack('>I1I6I6I7I7I7I7', 0, 0, remaining, reset, retry, 0, 0)
    return key, decision, value, ttl, decision, value, ttl
  end

  local plain = false
  if not alone then
    plain = pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0)
  end
  if lease > free - need then
    lease = free - need
  end
  local more = need + lease
  if more <= 0 then
    local decision = plain or pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0)
    return key, decision, value, ttl, decision, value, ttl
  end

  local counts = now -- from when the units count
  if lease > 0 then
    counts = now + span
  end
  total = total + more
  if mark == 0 then
    if unpack('>I7', pack('>I7', now)) ~= now then
      error('this server is built for 32 bits, which cannot hold a time in microseconds')
    end
    stamp, units, first, mark = counts, more, counts, now
  else
    if counts < stamp then
      counts = stamp
    end
    local near = counts == stamp or (limit > 64 and (counts - first) * 64 < window)
    if not near and upto - from + 1 >= (68 - 1) * 13 then
      s, units, first = compact(sub(s, from, upto), stamp, units, first, window)
      from, upto = 1, #s
      s = s .. pack('>I7I6', stamp, units)
    end
    if near or upto - from + 1 >= (68 - 1) * 13 then
      stamp, units = counts, units + more
    else
      -- The last entry is s[upto+1..] as it was: one that was lowered is
      -- joined, for no charge is as far ahead.
      stamp, units, first, upto = counts, more, counts, upto + 13
    end
  end
  local charged = pack('>I7I6I7', mark, total, first) .. sub(s, from, upto) .. pack('>I7I6', stamp, units)
  local lives = math.ceil((stamp + window - now) / 1000) + 1000
  return key, pack('>I1I6I6I7I7I7I7', 1, lease, limit - total, stamp + window - now, 0, stamp, mark), charged, lives, plain, value, ttl
end

local replies, n = false, 0
if #run == 39 and string.byte(run) == 0 then
  -- What follows further down, for one request that reports nothing: most runs are
  -- such when there is little to do.
  at = 4
  local _, decision, value, ttl, plain, other, rest = decide(true)
  if not granted then
    decision, value, ttl = plain, other, rest
  end
  if not value then
    return decision
  elseif not tails then
    call('SET', KEYS[1], value, 'PX', ttl)
    return decision
  end
  values, lives, replies, n = {value}, {ttl}, {decision}, 1
else
  values, lives, replies = values or {only}, {}, {}
end

-- What few runs need is made where it is needed: making a function costs the server
-- more than calling it.
local refund, here -- here is the identity of the data, once it was asked for

while at <= #run do
  local kind, count = unpack('>I1I2', run, at)
  at = at + 3
  granted = true
  if kind == 0 and count == 1 then
    -- What follows for several requests, without its tables.
    local key, decision, value, ttl, plain, other, rest = decide(true)
    if not granted then
      decision, value, ttl = plain, other, rest
    end
    if value then
      values[key], lives[key] = value, ttl
    end
    n = n + 1
    replies[n] = decision
  elseif kind == 0 then
    local decided = {}
    for i = 1, count do
      decided[i] = {decide(false)}
    end
    local case = granted and 2 or 5
    for i = 1, count do
      local d = decided[i]
      if d[case + 1] then
        values[d[1]], lives[d[1]] = d[case + 1], d[case + 2]
      end
      replies[n + i] = d[case]
    end
    n = n + count
  elseif not refund then
    -- identity tells the data of this server from any other's, and from its own
    -- at another time: a server that stands in for another may lack the latest
    -- charges, and have others in their place. It is made of the run, which ends
    -- with the data in memory, and of the history of writes, which begins anew
    -- when a replica becomes the master: a server that was master before has the
    -- same run. It is 0 if the server does not tell.
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

    -- Units leave the first entry that can hold them. What was charged in other
    -- data stays: a copy of a log has the same mark, and the entry might hold another
    -- client's units. It returns how many went back.
    refund = function()
      local key, window, given, of, back, origin = unpack('>I2I7I7I7I6I7', run, at)
      at = at + 36
      local s, from, upto, stamp, units, total, first, mark, lowered = parse(key, window)
      local middle = sub(s, from, upto)
      here = here or origin > 0 and identity()
      if (origin == 0 or origin == here) and mark > 0 and mark == of and given + window > now and given <= stamp then
        local place = 1
        while place <= #middle and unpack('>I7I6', middle, place) < given do
          place = place + 13
        end
        if place <= #middle then
          local earlier, more = unpack('>I7I6', middle, place)
          back = math.min(back, more)
          local rest = ''
          if back < more then
            rest = pack('>I7I6', earlier, more - back)
          end
          middle = sub(middle, 1, place - 1) .. rest .. sub(middle, place + 13)
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
      else
        back = 0
      end
      if back > 0 or lowered then
        if units > 0 then
          values[key] = pack('>I7I6I7', mark, total, first) .. middle .. pack('>I7I6', stamp, units)
          lives[key] = math.ceil((stamp + window - now) / 1000) + 1000
        else
          values[key], lives[key] = false, 0
        end
      end
      return pack('>I6', back)
    end
    at = at - 3 -- again, now that it is there
  else
    for i = 1, count do
      replies[n + i] = refund()
    end
    n = n + count
  end
end

-- Everything is decided. The server refuses the first write of a script or none: what
-- is written from here on does not fail half-way.
for key, ttl in pairs(lives) do
  local value, tail = values[key], tails and tails[key]
  local rest = tail and unpack('>I7', tail, 8) - now or 0
  if rest > 0 then
    value = (value or pack('>I7I6I7', 0, 0, 0)) .. tail
    ttl = math.max(ttl, math.ceil(rest / 1000) + 1000)
  end
  if ttl > 0 then
    call('SET', KEYS[key], value, 'PX', ttl)
  else
    call('DEL', KEYS[key])
  end
end
return table.concat(replies)
