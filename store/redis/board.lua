-- Reads and changes the board: notices that all processes which use a store are told.
--
-- KEYS[1]  the board
-- ARGV[1]  what is to be done: the key's place in KEYS (2 bytes, always 1), 0 to read, 1 to
--          post and 2 to withdraw a notice (1), and
--   read      the revision that the caller knows (7)
--   post      class of the notice (1), lengths of its name and its text (2 each), for how
--             long it is posted (7), how many others of the class there may be, and one
--             more (2), name and text
--   withdraw  class of the notice (1), length of its name (2), name
-- Reply    one string
--   read      the revision of the board (7), 0 of an empty one; unless the caller knows
--             it, for each notice its class (1), lengths of its name and its text (2
--             each), how long it is yet to last (7), name and text
--   post      1 byte: 1 if it was posted, 0 if the board is full
--   withdraw  1 byte: 1 if it was there, else 0
--
-- A board is a string: its revision, and when the first of its notices ends (7 each), then
-- the notices, each as in the reply but for when it ends, and for how long it was posted (7
-- each), in the place of how long it lasts. Any other format needs another version in the
-- key. Times are microseconds of the server's clock. A revision is the time of the
-- last change, or one more than the revision before. What has ended goes with the next
-- read or change. If the clock steps back, a notice ends no later than if it were posted
-- anew.

local pack, unpack, sub = struct.pack, struct.unpack, string.sub
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local run = ARGV[1]
local _, what = unpack('>I2I1', run)

local s = redis.pcall('GET', KEYS[1])
if type(s) == 'table' then
  if not string.find(s.err, 'WRONGTYPE', 1, true) then
    return s
  end
  s = '' -- another type is no board
end
local revision, first = 0, 0
if s and #s >= 14 then
  revision, first = unpack('>I7I7', s)
end

-- Mostly, nothing has happened since the last time.
local known = what == 0 and unpack('>I7', run, 4)
if known and known == revision and (not s or revision <= now and now < first) then
  return pack('>I7', revision)
end

-- The notices that go on: {class, name, text, when it ends, for how long it was posted}.
local notices, changed, at = {}, false, 15
while s and at <= #s do
  local short = at + 19 - 1 > #s
  local class, name, text, ends, lasts
  if not short then
    class, name, text, ends, lasts = unpack('>I1I2I2I7I7', s, at)
    short = at + 19 + name + text - 1 > #s
  end
  if short then
    notices, changed = {}, true -- this is no board
    break
  end
  at = at + 19
  if ends > now + lasts then
    ends, changed = now + lasts, true
  end
  if ends > now then
    notices[#notices + 1] = {class, sub(s, at, at + name - 1), sub(s, at + name, at + name + text - 1), ends, lasts}
  else
    changed = true
  end
  at = at + name + text
end

-- take takes a notice off the list, and returns how many others of its class there are.
local function take(class, name)
  local others, found = 0, false
  for i = #notices, 1, -1 do
    if notices[i][1] == class then
      if notices[i][2] == name then
        table.remove(notices, i)
        found = true
      else
        others = others + 1
      end
    end
  end
  return others, found
end

local reply = ''
if what == 1 then
  local class, name, text, lasts, most = unpack('>I1I2I2I7I2', run, 4)
  local of = sub(run, 18, 18 + name - 1)
  local others, found = take(class, of)
  if others < most then
    notices[#notices + 1] = {class, of, sub(run, 18 + name, 18 + name + text - 1), now + lasts, lasts}
    changed, reply = true, '\1'
  else
    return '\0'
  end
elseif what == 2 then
  local class, name = unpack('>I1I2', run, 4)
  local _, found = take(class, sub(run, 7, 7 + name - 1))
  changed, reply = changed or found, found and '\1' or '\0'
end

if changed and #notices == 0 then
  revision = 0
  redis.call('DEL', KEYS[1])
elseif changed then
  revision = math.max(now, revision + 1)
  if unpack('>I7', pack('>I7', revision)) ~= revision then
    error('this server is built for 32 bits, which cannot hold a time in microseconds')
  end
  local first, last, packed = notices[1][4], 0, {}
  for i, n in ipairs(notices) do
    first, last = math.min(first, n[4]), math.max(last, n[4])
    packed[i] = pack('>I1I2I2I7I7', n[1], #n[2], #n[3], n[4], n[5]) .. n[2] .. n[3]
  end
  redis.call('SET', KEYS[1], pack('>I7I7', revision, first) .. table.concat(packed), 'PX', math.ceil((last - now) / 1000) + 1000)
end
if what > 0 then
  return reply
end

local packed = {}
if known ~= revision then
  for i, n in ipairs(notices) do
    packed[i] = pack('>I1I2I2I7', n[1], #n[2], #n[3], n[4] - now) .. n[2] .. n[3]
  end
end
return pack('>I7', revision) .. table.concat(packed)
