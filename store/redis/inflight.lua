-- Decides claims: how many slots a process holds of a key, and how many more it gets.
--
-- KEYS     the records of all claims, each once, all of one Cluster slot
-- ARGV[1]  the claims, packed like the reply, each of them: its key's place in KEYS (2
--          bytes), whether an earlier claim may still arrive (1, 0 or 1), name of the
--          process's life (8), number of the claim (7), slots held, wanted, and the
--          limit (5 each), how many former names the process has, and how many lives
--          of others are dead (1 each), and these names (8 each)
-- Reply    one string, for each claim in its turn: slots granted (5 bytes), slots of
--          all processes after it (6), how many names follow (2), and, if less was
--          granted than was wanted, the names of processes that hold slots and have
--          made no claim for 15 s (8 each): they may be dead
--
-- Times are microseconds of the server's clock.
--
-- A record is a string: for each process the name of its life (8 bytes), the number
-- of its latest claim (7), the slots that it holds (5), when it said so (7), and
-- for how many seconds from then on that must be remembered even if it holds none
-- (1): an earlier claim that arrives later would count for ever. Any other format
-- needs another version in the keys.
--
-- What a process holds is dropped when it goes by another name, when it is known to
-- be dead and has made no claim for 15 s (so that a process that has just begun is
-- not dead before its first heartbeat), and if it has not been heard of for as
-- long as a record is kept. Nothing is written before everything is decided: after any
-- error, nothing was written.

local spread = unpack
local pack, unpack, sub, abs, find = struct.pack, struct.unpack, string.sub, math.abs, string.find
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept, grace = 10800000000, 15000000 -- 3 h and 15 s
local run, at = ARGV[1], 1

local values = redis.call('MGET', spread(KEYS)) -- to which another type is nothing
local lives, replies = {}, {} -- times to live of what is to be written, 0 to delete it

-- names reports whether a name is in a list of names.
local function names(list, name)
  local from = find(list, name, 1, true)
  while from and from % 8 ~= 1 do
    from = find(list, name, from + 1, true)
  end
  return from
end

while at <= #run do
  local key, late, life, seq, held, want, limit, former, dead = unpack('>I2I1c8I7I5I5I5I1I1', run, at)
  at = at + 35
  local gone, killed = sub(run, at, at + 8 * former - 1), sub(run, at + 8 * former, at + 8 * (former + dead) - 1)
  at = at + 8 * (former + dead)

  local s = values[key]
  local found = s and s ~= ''
  if not s or #s % 28 ~= 0 then
    s = ''
  end
  local entries, suspects, sum, mine, own, remember = {}, {}, 0, 0, false, late * 60
  for from = 1, #s, 28 do
    local name, number, count, seen, seconds = unpack('>c8I7I5I7I1', s, from)
    local age = abs(now - seen)
    if name == life then
      mine, own = number, count
      remember = math.max(remember, math.min(60, math.ceil((seen - now) / 1000000) + seconds))
    elseif not (count == 0 and age >= seconds * 1000000 or age > kept or
        former > 0 and names(gone, name) or dead > 0 and age > grace and names(killed, name)) then
      entries[#entries + 1] = sub(s, from, from + 27)
      sum = sum + count
      if count > 0 and age > grace then
        suspects[#suspects + 1] = name
      end
    end
  end

  local granted = 0
  if seq >= mine then -- the same claim is repeated with the names of the dead
    granted = math.max(0, math.min(want, limit - sum - held))
    own = held + granted
    if own > 0 or remember > 0 then
      entries[#entries + 1] = pack('>c8I7I5I7I1', life, seq, own, now, remember)
    end
    local value = table.concat(entries)
    if value ~= '' then
      values[key], lives[key] = value, sum + own > 0 and kept / 1000 or 61000
    elseif found then
      values[key], lives[key] = '', 0
    end
  end
  if granted == want then
    suspects = {}
  end
  replies[#replies + 1] = pack('>I5I6I2', granted, sum + own, #suspects) .. table.concat(suspects)
end

for key, ttl in pairs(lives) do
  if ttl > 0 then
    redis.call('SET', KEYS[key], values[key], 'PX', ttl)
  else
    redis.call('DEL', KEYS[key])
  end
end
return table.concat(replies)
