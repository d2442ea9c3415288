-- Notes that an instance is alive, and tells what shows whether the server
-- still has what it had.
--
-- KEYS[1]  the instances of a store, of one server
-- KEYS[2]  lives of processes that hold slots, see inflight.lua; may be missing
-- ARGV[1]  name of the instance, 8 bytes
-- ARGV[2]  number of this beat of the instance, 1 and up; 0 if it leaves
-- ARGV[3]  how long an instance is alive after a beat, in microseconds
-- ARGV[4]  with KEYS[2], names of lives that go on, 8 bytes each
-- ARGV[5]  with KEYS[2], how long a life goes on after a beat, in microseconds
-- Reply    one string: birth of the list (7 bytes), number of the instance's
--          latest beat that was noted before or 0 (7), instances alive (4),
--          keys evicted since the server's start (7), identity of the server's
--          data or 0 (7); with KEYS[2] birth of its list (7), for each of ARGV[4] 1
--          if it was alive just before, else 0 (1), and names of other lives that go
--          on (8 each)
--
-- The list is a string: its birth, then for each instance its name (8 bytes),
-- the time of the last beat that arrived, and the highest number of a beat (7
-- each): one may overtake another on its way. Times are microseconds of the server's clock.
-- An instance that finds no list begins one: the server has lost it, or no
-- instance was alive for a day. The list of lives is its birth, then for each life its
-- name and the time of the last beat that carried it.

local pack, unpack, sub = struct.pack, struct.unpack, string.sub
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local name, beat, life = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- MGET and not GET, so that a user without the right to it is noticed before calls
-- need it, which share runs of their script only under load.
local found = redis.pcall('MGET', KEYS[1], KEYS[2] or KEYS[1])
if found.err then
  return found
end
local list = found[1] -- nothing if it is of another type

local birth, before, alive, others = now, 0, 0, {}
if type(list) == 'string' and #list >= 7 and (#list - 7) % 22 == 0 then
  birth = unpack('>I7', list)
  for at = 8, #list, 22 do
    local seen, number = unpack('>I7I7', list, at + 8)
    if sub(list, at, at + 7) == name then
      before = number
    elseif seen + life > now and seen - life < now then
      alive = alive + 1
      others[alive] = sub(list, at, at + 21)
    end
  end
end

-- identity is as in window.lua: a change to one is a change to both.
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

-- An old server, or a user without the right to INFO, tells neither evictions nor
-- the identity.
local evicted, origin = 0, 0
local info = redis.pcall('INFO', 'stats')
if type(info) == 'string' then
  evicted = tonumber(string.match(info, 'evicted_keys:(%d+)')) or 0
  origin = identity()
end

if beat > 0 then
  alive = alive + 1
  others[alive] = name .. pack('>I7I7', now, math.max(beat, before))
end
redis.call('SET', KEYS[1], pack('>I7', birth) .. table.concat(others), 'PX', 86400000)
local reply = pack('>I7I7I4I7I7', birth, before, alive, evicted, origin)
if not KEYS[2] then
  return reply
end

local carried, goes = ARGV[4], tonumber(ARGV[5])
local entries, names, known, began = {}, {}, {}, now
for at = 1, #carried, 8 do
  local life = sub(carried, at, at + 7)
  known[life] = '\0'
  entries[#entries + 1] = life .. pack('>I7', now)
end
list = found[2]
if type(list) == 'string' and #list >= 7 and (#list - 7) % 15 == 0 then
  began = unpack('>I7', list)
  for at = 8, #list, 15 do
    local life, seen = sub(list, at, at + 7), unpack('>I7', list, at + 8)
    if math.abs(now - seen) < goes then
      if known[life] then
        known[life] = '\1'
      else
        names[#names + 1] = life
        entries[#entries + 1] = sub(list, at, at + 14)
      end
    end
  end
end
redis.call('SET', KEYS[2], pack('>I7', began) .. table.concat(entries), 'PX', 86400000)
local before = {}
for at = 1, #carried, 8 do
  before[#before + 1] = known[sub(carried, at, at + 7)]
end
return reply .. pack('>I7', began) .. table.concat(before) .. table.concat(names)
