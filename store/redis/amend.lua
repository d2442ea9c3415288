-- Changes what is kept of a key by hand: the twin of store.Window.Amend. The format of
-- a log is in window.lua; a change to it is one here.
--
-- KEYS[1]  the log
-- ARGV[1]  the amendment: its key's place in KEYS (2 bytes, always 1), window (7), what is
--          to be done (1: 1 to end any ban, plus 2 to forget the units), and
--          for how long the key is banned from now on, 0 not at all (7)
-- Reply    one byte, 1
--
-- Times are microseconds of the server's clock. What is done a second time changes
-- nothing, but for the end of a ban. The write comes last: after any error, nothing was
-- written.

local pack, unpack, sub, min, max = struct.pack, struct.unpack, string.sub, math.min, math.max
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local _, window, what, ban = unpack('>I2I7I1I7', ARGV[1])
local unban, empty = what % 2 == 1, what >= 2

local s = redis.pcall('GET', KEYS[1])
if type(s) == 'table' then
  if not string.find(s.err, 'WRONGTYPE', 1, true) then
    return s
  end
  s = '' -- another type is no log
end
local found = s

local ends, flags, size = 0, 0, s and #s - 13 or 0
if size % 18 == 15 then
  ends, _, flags = unpack('>I7I7I1', s, #s - 14)
  ends = min(ends, now + 2592000000000) -- the clock may have stepped back
  size = size - 15
end
local mark, total, entries = 0, 0, ''
if size >= 18 and size % 18 == 0 and size <= 68 * 18 then
  mark, total = unpack('>I7I6', s)
  local from = 13 + 1
  while from <= size + 13 do
    local stamp, units = unpack('>I7I6', s, from)
    if stamp + window > now then
      break
    end
    total, from = total - units, from + 18
  end
  entries = sub(s, from, size + 13)
end

-- Stamps that lie too far ahead become one entry, as in window.lua.
local latest = now + 11000000
if entries ~= '' and unpack('>I7', entries, #entries - 17) > latest then
  local first, sum, upto = latest, 0, #entries
  while upto > 0 do
    local stamp, units, span = unpack('>I7I6I5', entries, upto - 17)
    if stamp < latest then
      break
    end
    first, sum, upto = min(first, stamp - span), sum + units, upto - 18
  end
  entries = sub(entries, 1, upto) .. pack('>I7I6I5', latest, sum, latest - first)
  mark = mark == now and now + 1 or now
end

if unban and ends > now then
  ends, flags = now, 0
end
if empty then
  entries = ''
  if flags % 2 == 0 then
    ends = 0
  end
end
if ban > 0 then
  ends, flags = now + ban, 1
  if unpack('>I7', pack('>I7', ends)) ~= ends then
    error('this server is built for 32 bits, which cannot hold a time in microseconds')
  end
end

if entries == '' and ends <= now then
  if found then
    redis.call('DEL', KEYS[1])
  end
  return '\1'
end
local expires, value = 0, pack('>I7I6', 0, 0)
if entries ~= '' then
  expires, value = unpack('>I7', entries, #entries - 17) + window, pack('>I7I6', mark, total) .. entries
end
if ends > 0 then
  expires = max(expires, ends)
  value = value .. pack('>I7I7I1', ends, expires, flags)
end
redis.call('SET', KEYS[1], value, 'PX', math.ceil((expires - now) / 1000) + 1000)
return '\1'
