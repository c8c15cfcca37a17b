"""The scripts that the store runs, and the commands that its user must be allowed to run.

Knows nothing of connections or of what keys are called.
"""

from __future__ import annotations

# Each script reads, plans its writes, and carries them out at the end, all or none: nothing undoes
# the first writes of a script that fails at a later one. What could fail later is asked before: the
# header lets the store refuse a whole script when its memory is full, it is read-only or cannot
# save; `commit` asks whether the user may run every command; reads find keys of another type.
WRITES = """#!lua
local writes = {}
local function write(...) writes[#writes + 1] = {...} end
local function commit()
  for _, command in ipairs(writes) do
    if not redis.acl_check_cmd(unpack(command)) then
      return redis.error_reply("NOPERM no permissions to run the '" .. command[1] .. "' command")
    end
  end
  for _, command in ipairs(writes) do redis.call(unpack(command)) end
end
"""
READS = "#!lua flags=no-writes\n"

# KEYS history, marks, shown; ARGV event_id, history_cap (0: the event does not enter the history),
# history_ttl_s, mark_ttl_s, start of the answer it names ('' for none), the mark of that answer's
# first event of this type, item_ids. 0 = a duplicate, 1 = stored, or bundle, variant, rank and
# whether it is the first. The clock is the server's, so that replicas of the service agree.
# The marks are written when all else is: an event without its mark would be stored again.
APPEND = (
    WRITES
    + r"""
local now = tonumber(redis.call('TIME')[1])
local cap, ttl = tonumber(ARGV[2]), tonumber(ARGV[4])
local function is_marked(name)
  local at = redis.call('ZSCORE', KEYS[2], name)
  return at and tonumber(at) > now - ttl
end
local function attributed()
  local is_wanted = {}
  for i = 7, #ARGV do is_wanted[ARGV[i]] = true end
  for _, text in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
    if string.sub(text, 1, #ARGV[5]) == ARGV[5] then
      local shown = cjson.decode(text)
      if shown.at + ttl < now then return nil end
      for rank, item_id in ipairs(shown.item_ids) do
        if is_wanted[item_id] then return {shown.bundle, shown.variant, rank, 0} end
      end
      return nil
    end
  end
end

if is_marked(ARGV[1]) then return 0 end
if cap > 0 then
  write('LPUSH', KEYS[1], ARGV[7])
  write('LTRIM', KEYS[1], 0, cap - 1)
  write('EXPIRE', KEYS[1], ARGV[3])
end
local mark = {'ZADD', KEYS[2], now, ARGV[1]}
local reply = ARGV[5] ~= '' and attributed() or 1
local first = '\255' .. ARGV[6] -- No event_id looks like this one: \255 is in no UTF-8 text.
if reply ~= 1 and not is_marked(first) then
  reply[4] = 1
  mark[5], mark[6] = now, first
end
write('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ttl)
write(unpack(mark))
write('EXPIRE', KEYS[2], ttl)
return commit() or reply
"""
)

# KEYS shown; ARGV an answer, index of the oldest one that stays, how long all stay. One command in
# the place of three: this is done for every recommendation. A repeated call changes nothing.
REMEMBER = (
    WRITES
    + """
if redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
write('LPUSH', KEYS[1], ARGV[1])
write('LTRIM', KEYS[1], 0, ARGV[2])
write('EXPIRE', KEYS[1], ARGV[3])
return commit() or 1
"""
)

# KEYS order, items; ARGV an item_id, its entry, and so on. Every change gets a number of
# its own, so that a reader can go on from any of them; of an item only the last is kept. Numbers
# are microseconds of the server's clock, so that one that lost some writes gives none out again.
# A number is written after its entry: whoever reads the number finds it.
WRITE_ITEMS = (
    WRITES
    + """
local time = redis.call('TIME')
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or '0'
local number = math.max(tonumber(last), time[1] * 1000000 + time[2])
for i = 1, #ARGV, 2 do
  number = number + 1
  write('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  write('ZADD', KEYS[1], string.format('%.0f', number), ARGV[i])
end
return commit() or 1
"""
)

# KEYS order. The number of the last change.
ITEMS_VERSION = READS + "return redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or '0'"

# KEYS order, items; ARGV the number of the last change that is known, how many to read.
# Item_ids, each before its number; then their entries.
READ_ITEMS = (
    READS
    + """
local changes = redis.call(
  'ZRANGEBYSCORE', KEYS[1], '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local ids = {}
for i = 1, #changes, 2 do ids[#ids + 1] = changes[i] end
if #ids == 0 then return {changes, {}} end
return {changes, redis.call('HMGET', KEYS[2], unpack(ids))}
"""
)
# KEYS some; ARGV commands. Those that the user may not run with such keys.
CHECK = (
    READS
    + """
local denied = {}
for _, command in ipairs(ARGV) do
  if not redis.acl_check_cmd(command, KEYS[1], KEYS[2], KEYS[3]) then
    denied[#denied + 1] = command
  end
end
return denied
"""
)
# What the scripts run, and what is run beside them; EVAL has shown itself when CHECK answers.
RIGHTS = {"DEL", "EXPIRE", "HMGET", "HSET", "LPOS", "LPUSH", "LRANGE", "LTRIM", "TIME", "ZADD"}
RIGHTS |= {"ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE", "ZSCORE"}
