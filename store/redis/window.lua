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
--            span (7), shadow (1: 0, or 1; 2 more if it bans), the number of
--            entries that are unreported (1); if it bans for how long (7); and of
--            each of the entries age (7) and units (6)
--   refund   1 (1 byte), the number of refunds (2); for each of them its key's place
--            in KEYS (2), window, stamp and mark (7 each), units (6), origin (7)
-- Reply    one string (a reply of many integers costs the server more than all
--          the arithmetic), for each call in its turn
--   take     for each request granted (1 byte, 0 or 1, or 2 if it is refused by
--            a ban, which may begin with it), lease and remaining (6
--            each), reset, retry after, stamp and mark (7 each); the last two
--            are 0 if nothing was charged; if it reports anything also the time
--            now and the mark (7 each) of the log in which that counts, 0 of none
--   refund   for each the units that went back (6)
--
-- Times are microseconds of the server's clock.
--
-- A log is a string: mark and total, then the entries in the order of their stamps,
-- each a stamp, its units, and by how much its first stamp is earlier. A time takes 7
-- bytes, since 6 would have sufficed only until 1978; units take 6, and the time within
-- an entry 5, which is twelve days. A log may end in 15 bytes more, which its length
-- shows, since no number of entries is as long: of the last ban the time when it ends
-- or has ended, the time until which that is to be kept, and a byte, 1 if it was set by
-- hand and 0 if not. They are there until units are granted or nothing is left in the
-- log, and as long as the ban goes on. Versions before there were bans keep them as they
-- are. Any other change of the format changes the version in the keys, too.
--
-- Nothing is written before everything is decided: after any error, nothing was
-- written.
--
-- Numbers and formats stand where they are used, because a local that
-- functions share is bound again at every call, which costs the server more
-- than the arithmetic. They are:
--
--   13        bytes of a header, or of what is unreported, '>I7I6'
--   18        bytes of an entry, '>I7I6I5'
--   36        bytes of a request without a ban and what is unreported
--   52        bytes of the shortest run of more than a call that takes one request
--             and reports nothing
--   64        the largest limit whose log keeps every stamp apart, and the
--             fraction of a window within which others merge
--   68        the most entries
--   11000000  how far ahead a stamp may lie
--   281474976710655   the most units of a log, which fit 6 bytes
--   2592000000000     the longest ban

local spread = unpack
local pack, unpack, sub, call = struct.pack, struct.unpack, string.sub, redis.call

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local run, at = ARGV[1], 1 -- what is read next of the run

-- only is what is at the only one of KEYS, or values are what is at each, false for
-- nothing: as far as the run has come. expiries tell when what is to be written counts
-- nothing any more, 0 to delete it. bans are the 15 bytes at the end of logs that have
-- them, false if no log has; values are without them.
local only, values, expiries, bans = false, false, false, false

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

-- parse returns the log of a key as of now: s, from, upto, stamp, units, first, total,
-- mark, lowered. The entries before the last one stay packed, at s[from..upto]; stamp,
-- units and first stamp are the last one's. A mark of 0 means that nothing counts.
local function parse(key, window)
  local s = only
  if values then
    s = values[key]
  end
  local size = s and #s - 13 or 0
  if size % 18 == 15 then
    local ban = sub(s, -15)
    local ends, _, flags = unpack('>I7I7I1', ban)
    if ends > now + 2592000000000 then
      ban = pack('>I7I7I1', now + 2592000000000, 0, flags) -- the clock stepped back
    end
    bans = bans or {}
    bans[key] = ban
    s, size = sub(s, 1, -16), size - 15
    if values then
      values[key] = s
    end
  end
  if size < 18 or size % 18 ~= 0 or size > 68 * 18 then
    return '', 1, 0, 0, 0, 0, 0, 0, false
  end

  local mark, total, stamp, units, span = unpack('>I7I6I7I6I5', s)
  local from, upto = 13 + 1, size + 13 - 18
  while stamp + window <= now do
    if from > upto then
      return '', 1, 0, 0, 0, 0, 0, 0, false
    end
    total = total - units
    from = from + 18
    stamp, units, span = unpack('>I7I6I5', s, from)
  end
  if from <= upto then
    stamp, units, span = unpack('>I7I6I5', s, upto + 1)
  end

  local latest = now + 11000000
  if stamp <= latest then
    return s, from, upto, stamp, units, stamp - span, total, mark, false
  end
  -- The clock stepped back: what lies further ahead than any charge could
  -- becomes one entry, and earlier charges can no longer be refunded.
  local first = stamp - span
  while from <= upto do
    local earlier, more, width = unpack('>I7I6I5', s, upto - 18 + 1)
    if earlier < latest then
      break
    end
    first, units = earlier - width, units + more
    upto = upto - 18
  end
  if first > latest then
    first = latest
  end
  return s, from, upto, latest, units, first, total, mark == now and now + 1 or now, true
end

-- insert puts units in their place among packed entries, and returns these with the
-- stamp that the units then have, which is never earlier. (If room had to be made, they
-- may be held for longer than it says.)
local function insert(entries, stamp, units, limit, window)
  -- before is the last byte of the entries that are earlier, of which (e, u, w) is
  -- the last one, and (E, U, W) the first of the others.
  local before = #entries
  local e, u, w, E, U, W
  while before > 0 do
    e, u, w = unpack('>I7I6I5', entries, before - 18 + 1)
    if e < stamp then
      break
    end
    E, U, W, before = e, u, w, before - 18
  end
  if E and E - W <= stamp then
    return sub(entries, 1, before) .. pack('>I7I6I5', E, U + units, W) .. sub(entries, before + 18 + 1), E
  end
  if limit > 64 then
    if before > 0 and (stamp - e + w) * 64 < window then
      return sub(entries, 1, before - 18) .. pack('>I7I6I5', stamp, u + units, stamp - e + w) .. sub(entries, before + 1), stamp
    elseif E and (E - stamp) * 64 < window then
      return sub(entries, 1, before) .. pack('>I7I6I5', E, U + units, E - stamp) .. sub(entries, before + 18 + 1), E
    end
  end
  entries = sub(entries, 1, before) .. pack('>I7I6I5', stamp, units, 0) .. sub(entries, before + 1)
  if #entries <= 68 * 18 then
    return entries, stamp
  end

  -- There is one too many: the two neighbours that span the least time together
  -- become one, of the later stamp.
  local least, place = false, 0
  e, u, w = unpack('>I7I6I5', entries)
  for at = 18 + 1, #entries, 18 do
    E, U, W = unpack('>I7I6I5', entries, at)
    if not least or E - e + w < least then
      least, place = E - e + w, at
    end
    e, w = E, W
  end
  e, u = unpack('>I7I6', entries, place - 18)
  E, U = unpack('>I7I6', entries, place)
  entries = sub(entries, 1, place - 18 - 1) .. pack('>I7I6I5', E, u + U, least) .. sub(entries, place + 18)
  return entries, stamp
end

local granted = true

-- decide decides one request of a call, which is alone if it is the only one. It
-- returns its key, its decision, and what is then to be written or false, and when that
-- expires: first for the case that the call is granted, then for the case that it is
-- not; and whether what there is of a ban goes if the call is granted.
local function decide(alone)
  local key, window, limit, need, lease, span, shadow, unreported = unpack('>I2I7I6I6I6I7I1I1', run, at)
  at = at + 36
  local block = 0
  if shadow > 1 then
    shadow, block = shadow - 2, unpack('>I7', run, at)
    at = at + 7
  end
  local s, from, upto, stamp, units, first, total, mark, changed = parse(key, window)
  local ban, ends = bans and bans[key], 0 -- when the ban ends
  if ban then
    ends = unpack('>I7', ban)
    if mark == 0 and ends <= now then
      ban, bans[key] = false, false
    end
  end
  local told = ''
  if unreported > 0 then
    -- What is unreported counts from when it was spent, whether or not the call
    -- is granted.
    local entries = ''
    if mark > 0 then
      entries = sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first)
    end
    for _ = 1, unreported do
      local age, more = unpack('>I7I6', run, at)
      at = at + 13
      if more > 281474976710655 - total then
        more = 281474976710655 - total
      end
      if age < window and more > 0 then
        if mark == 0 then
          if unpack('>I7', pack('>I7', now)) ~= now then
            error('this server is built for 32 bits, which cannot hold a time in microseconds')
          end
          mark = now
        end
        changed = true
        total = total + more
        entries = insert(entries, now - age, more, limit, window)
      end
    end
    if mark > 0 then
      s, from, upto = entries, 1, #entries - 18
      stamp, units, first = unpack('>I7I6I5', s, upto + 1)
      first = stamp - first
    end
    told = pack('>I7I7', mark > 0 and now or 0, mark)
  end
  local free = limit - total
  local remaining = free > 0 and free or 0
  local reset = mark > 0 and stamp + window - now or 0
  local value, expires = false, stamp + window
  if need > 0 and need > free or ends > now then
    if shadow == 0 then
      granted = false
    end
    local excess, retry = need - free, 0
    if need > 0 and excess > 0 then
      retry = window
      local place = from
      while excess > 0 and place <= upto do
        local earlier, more = unpack('>I7I6', s, place)
        excess = excess - more
        retry = earlier + window - now
        place = place + 18
      end
      if excess > 0 then
        retry = excess <= units and stamp + window - now or window
      end
    end
    if block > 0 and not ban and need <= limit then
      ends, changed = now + block, true
      bans = bans or {}
      bans[key] = pack('>I7I7I1', ends, 0, 0)
    end
    local refused = 0
    if ends > now then
      refused = 2
      retry, reset = math.max(retry, ends - now), math.max(reset, ends - now)
    end
    if changed then
      value = pack('>I7I6', mark, total) .. sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first)
    end
    local decision = pack('>I1I6I6I7I7I7I7', refused, 0, remaining, reset, retry, 0, 0) .. told
    return key, decision, value, expires, decision, value, expires
  end
  if changed then
    value = pack('>I7I6', mark, total) .. sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first)
  end

  local plain = false
  if not alone then
    plain = pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0) .. told
  end
  if lease > free - need then
    lease = free - need
  end
  local more = need + lease
  if more <= 0 then
    local decision = plain or pack('>I1I6I6I7I7I7I7', 1, 0, remaining, reset, 0, 0, 0) .. told
    return key, decision, value, expires, decision, value, expires
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
  elseif counts >= first and counts <= stamp then
    counts, units = stamp, units + more
  elseif counts > stamp and limit > 64 and (counts - first) * 64 < window then
    stamp, units = counts, units + more
  elseif counts > stamp and upto - from + 1 < (68 - 1) * 18 then
    -- The last entry is s[upto+1..] as it was: one that was lowered is
    -- joined, for no grant is as far ahead.
    stamp, units, first, upto = counts, more, counts, upto + 18
  else
    s, counts = insert(sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first), counts, more, limit, window)
    from, upto = 1, #s - 18
    stamp, units, first = unpack('>I7I6I5', s, upto + 1)
    first = stamp - first
  end
  local charged = pack('>I7I6', mark, total) .. sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first)
  local lasts = stamp + window
  return key, pack('>I1I6I6I7I7I7I7', 1, lease, limit - total, lasts - now, 0, counts, mark) .. told, charged, lasts, plain, value, expires, ban
end

local replies, n = false, 0
if #run < 52 and string.byte(run) == 0 then
  -- What follows further down, for one request that reports nothing: most runs are
  -- such when there is little to do.
  at = 4
  local _, decision, value, expires, plain, other, rest, ban = decide(true)
  if not granted then
    decision, value, expires = plain, other, rest
  end
  if not value then
    return decision
  elseif not bans then
    call('SET', KEYS[1], value, 'PX', math.ceil((expires - now) / 1000) + 1000)
    return decision
  end
  if granted and ban then
    bans[1] = false
  end
  values, expiries, replies, n = {value}, {expires}, {decision}, 1
else
  values, expiries, replies = values or {only}, {}, {}
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
    local key, decision, value, expires, plain, other, rest, ban = decide(true)
    if not granted then
      decision, value, expires = plain, other, rest
    elseif ban then
      bans[key] = false
    end
    if value then
      values[key], expiries[key] = value, expires
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
        values[d[1]], expiries[d[1]] = d[case + 1], d[case + 2]
      end
      if granted and d[8] then
        bans[d[1]] = false
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
      local s, from, upto, stamp, units, first, total, mark, lowered = parse(key, window)
      local entries = mark > 0 and sub(s, from, upto) .. pack('>I7I6I5', stamp, units, stamp - first) or ''
      here = here or origin > 0 and identity()
      if (origin == 0 or origin == here) and mark > 0 and mark == of and given + window > now and given <= stamp then
        local place = 1
        while unpack('>I7', entries, place) < given do
          place = place + 18
        end
        local earlier, more, width = unpack('>I7I6I5', entries, place)
        back = math.min(back, more)
        local rest = ''
        if back < more then
          rest = pack('>I7I6I5', earlier, more - back, width)
        end
        entries = sub(entries, 1, place - 1) .. rest .. sub(entries, place + 18)
        total = total - back
      else
        back = 0
      end
      if back > 0 or lowered then
        if entries ~= '' then
          stamp = unpack('>I7', entries, #entries - 18 + 1)
          values[key], expiries[key] = pack('>I7I6', mark, total) .. entries, stamp + window
        else
          values[key], expiries[key] = false, 0
        end
      end
      local ban = back > 0 and bans and bans[key]
      if ban then
        -- A ban that was not set by hand is over when units come back.
        local ends, _, flags = unpack('>I7I7I1', ban)
        if ends > now and flags % 2 == 0 then
          bans[key] = pack('>I7I7I1', now, 0, flags)
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
for key, expires in pairs(expiries) do
  local value, ban = values[key], bans and bans[key]
  if ban then
    local ends, _, flags = unpack('>I7I7I1', ban)
    if expires > 0 or ends > now then
      expires = math.max(expires, ends)
      value = (value or pack('>I7I6', 0, 0)) .. pack('>I7I7I1', ends, expires, flags)
    end
  end
  if expires > 0 then
    call('SET', KEYS[key], value, 'PX', math.ceil((expires - now) / 1000) + 1000)
  else
    call('DEL', KEYS[key])
  end
end
return table.concat(replies)
