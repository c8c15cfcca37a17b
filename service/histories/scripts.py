"""The Lua scripts of the history store. Each runs in the store as one step.

A script writes all or nothing, and repeating it is safe. The keys and arguments of each are named
above it. Knows nothing of connections.
"""

# Each script first reads, then plans its writes, and carries them out at the end: all or none. If a
# later write failed, nothing would undo the earlier ones. So the script checks before it writes.
# The header lets the store refuse the whole script when its memory is full, when it is read-only,
# or when it cannot save. `commit` checks that the user may run every command. The reads find keys
# of another type.
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
PUSH, MOVE, DROP = "push", "move", "drop"

# KEYS history or refusals (the list that the item enters), marks, shown, log. ARGV event_id,
# history_cap (0: the event enters neither list nor log), history_ttl_s, mark_ttl_s, start of the
# answer that it names ('' for none), the mark of that answer's first event of this type, log_ttl_s
# (0: there is no log), the entry of the log without its time, what becomes of the item in the list
# (PUSH; MOVE: it is there once; DROP: it is taken out), 1 if it may count for what is trending, or
# 0, item_ids. Returns 0 for a duplicate, or how many events were trimmed from the log, 1 if it
# counts, or 0: once a day for each item; and if it is attributed bundle, variant, rank, and whether
# it is the first. The clock is the server's, so that all replicas of the service agree. It may go
# back; the times of a log do not. The marks are written last: an event without its mark would be
# stored again.
APPEND = (
    WRITES
    + r"""
local time = redis.call('TIME')
local now = tonumber(time[1])
local cap, ttl, log_ttl = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[7])
local function is_marked(name)
  local at = redis.call('ZSCORE', KEYS[2], name)
  return at and tonumber(at) > now - ttl
end
local function attributed()
  local is_wanted = {}
  for i = 11, #ARGV do is_wanted[ARGV[i]] = true end
  for _, text in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
    if string.sub(text, 1, #ARGV[5]) == ARGV[5] then
      local shown = cjson.decode(text)
      if shown.at + ttl < now then return nil end
      for rank, item_id in ipairs(shown.item_ids) do
        if is_wanted[item_id] then return {0, 0, shown.bundle, shown.variant, rank, 0} end
      end
      return nil
    end
  end
end
local function logged_at(entry) return entry and tonumber(string.match(entry, '%d+')) or 0 end
local function log()
  local num_old, now_ms = 0, now * 1000 + math.floor(tonumber(time[2]) / 1000)
  local function is_old(entry) return entry and logged_at(entry) < now_ms - log_ttl * 1000 end
  if is_old(redis.call('LRANGE', KEYS[4], 0, 0)[1]) then
    for _, entry in ipairs(redis.call('LRANGE', KEYS[4], 0, 99)) do
      if is_old(entry) then num_old = num_old + 1 else break end
    end
    write('LTRIM', KEYS[4], num_old, -1)
  end
  local at = math.max(now_ms, logged_at(redis.call('LRANGE', KEYS[4], -1, -1)[1]))
  write('RPUSH', KEYS[4], string.format('[%.0f,', at) .. ARGV[8])
  write('EXPIRE', KEYS[4], log_ttl)
  return num_old
end

if is_marked(ARGV[1]) then return 0 end
local num_trimmed = 0
if cap > 0 then
  if ARGV[9] ~= 'push' then write('LREM', KEYS[1], 0, ARGV[11]) end
  if ARGV[9] ~= 'drop' then
    write('LPUSH', KEYS[1], ARGV[11])
    write('LTRIM', KEYS[1], 0, cap - 1)
    write('EXPIRE', KEYS[1], ARGV[3])
  end
  if log_ttl > 0 then num_trimmed = log() end
end
local mark = {'ZADD', KEYS[2], now, ARGV[1]}
local reply = ARGV[5] ~= '' and attributed() or {0, 0}
-- No event_id looks like the other marks: \255 and \254 are in no UTF-8 text.
local function is_first(name)
  if is_marked(name) then return 0 end
  mark[#mark + 1], mark[#mark + 2] = now, name
  return 1
end
if #reply > 2 then reply[6] = is_first('\255' .. ARGV[6]) end
if ARGV[10] == '1' then reply[2] = is_first('\254' .. ARGV[11]) end
reply[1] = num_trimmed
write('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ttl)
write(unpack(mark))
write('EXPIRE', KEYS[2], ttl)
return commit() or reply
"""
)

# KEYS history, marks, shown, log. ARGV how the entries of the user go on after their time. The log
# is written again without them, and then lives as long as before. Memory is not asked for: a full
# store must be able to forget.
ERASE = (
    WRITES.replace("#!lua", "#!lua flags=allow-oom", 1)
    + """
local kept, num_gone = {}, 0
for _, entry in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
  local comma = string.find(entry, ',', 1, true) or 0
  if string.sub(entry, comma + 1, comma + #ARGV[1]) == ARGV[1] then
    num_gone = num_gone + 1
  else
    kept[#kept + 1] = entry
  end
end
write('DEL', KEYS[1], KEYS[2], KEYS[3])
if num_gone > 0 then
  local ttl = redis.call('TTL', KEYS[4])
  write('DEL', KEYS[4])
  for i = 1, #kept, 1000 do
    write('RPUSH', KEYS[4], unpack(kept, i, math.min(i + 999, #kept)))
  end
  if #kept > 0 and ttl > 0 then write('EXPIRE', KEYS[4], ttl) end
end
return commit() or num_gone
"""
)

# KEYS history. ARGV history_cap, history_ttl_s, item_ids of a log, oldest to newest.
# 1. The history is a run of the log (or empty): what the log has before and after it is added.
# 2. The log is a run of the history: nothing is missing.
# 3. The end of the log is the beginning of the history, as much of it as possible, or they share no
#    item: what the log has before is added.
# 4. Else nobody knows what is older: nothing is changed.
# Repeating the call changes nothing. Returns how many items were added; -1 in case 4.
# `ending` (Knuth, Morris and Pratt, so it takes linear time) returns how many items of the
# beginning of `part`, not all, end `whole`, and where in `whole` its last run that is `part` ends.
FILL = (
    WRITES
    + """
local history, log, cap = {}, {}, tonumber(ARGV[1])
local stored = redis.call('LRANGE', KEYS[1], 0, -1)
for i = #stored, 1, -1 do history[#history + 1] = stored[i] end
for i = 3, #ARGV do log[#log + 1] = ARGV[i] end

local function ending(part, whole)
  local back, n = {}, 0
  local function read(item)
    while n > 0 and part[n + 1] ~= item do n = back[n] end
    if part[n + 1] == item then n = n + 1 end
  end
  back[1] = 0
  for i = 2, #part do
    read(part[i])
    back[i] = n
  end
  n = 0
  local at = #part == 0 and #whole or nil
  for i, item in ipairs(whole) do
    read(item)
    if n == #part and n > 0 then at, n = i, back[n] end
  end
  return n, at
end
local function share_nothing()
  local is_stored = {}
  for _, item in ipairs(history) do is_stored[item] = true end
  for _, item in ipairs(log) do
    if is_stored[item] then return false end
  end
  return true
end
local function push(command, from, to, step)
  for start = from, to, 1000 * step do
    local last = start + 999 * step
    if (to - last) * step < 0 then last = to end
    local pushed = {command, KEYS[1]}
    for i = start, last, step do pushed[#pushed + 1] = log[i] end
    write(unpack(pushed))
  end
end

local before, num_newer = 0, 0
local num_same, at = ending(history, log)
if at then
  before, num_newer = at - #history, math.min(#log - at, cap)
elseif not select(2, ending(log, history)) then
  if num_same == 0 and not share_nothing() then return -1 end
  before = #log - num_same
end
local num_older = math.max(0, math.min(before, cap - #history - num_newer))
push('RPUSH', before, before - num_older + 1, -1)
if num_newer > 0 then
  push('LPUSH', #log - num_newer + 1, #log, 1)
  write('LTRIM', KEYS[1], 0, cap - 1)
end
if num_newer > 0 or #history == 0 and num_older > 0 then write('EXPIRE', KEYS[1], ARGV[2]) end
return commit() or num_older + num_newer
"""
)

# KEYS shown. ARGV an answer, index of the oldest answer that stays, how long all stay. One command
# instead of three, because this runs for every recommendation. A repeated call changes nothing.
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

# KEYS order, items. ARGV an item_id, its entry, and so on. Every change gets its own number, so a
# reader can continue from any number. Of each item only the last change is kept. Numbers are
# microseconds of the server's clock. So a server that lost some writes gives no number out again. A
# number is written after its entry, so whoever reads the number finds the entry.
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

# KEYS order. Returns the number of the last change.
ITEMS_VERSION = READS + "return redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2] or '0'"

# KEYS order, items. ARGV the number of the last change that is known, how many to read. Returns the
# item_ids, each before its number; then their entries.
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

# KEYS trending, last batch of the writer. ARGV number of the batch, half_life_s, an item_id, how
# many users, and so on. Numbers of a writer grow, and its last one is kept for an hour, so a batch
# that comes again is not counted again. An item's score is log2 of the sum over its users of
# 2 ^ (time / half_life); its decayed count is 2 ^ (score - now). So old scores are never written
# again, and none overflows. When there are twice MOST_TRENDING items, the best are kept, that many.
# A count goes when it is below 2 ^ -7.
MOST_TRENDING = 5000
COUNT_TRENDING = (
    WRITES
    + f"local most = {MOST_TRENDING}"
    + """
local time = redis.call('TIME')
local now = (time[1] + time[2] / 1000000) / ARGV[2]
local function log2(x) return math.log(x) / math.log(2) end
local last = tonumber(redis.call('HMGET', KEYS[2], 'batch')[1] or 0)
if tonumber(ARGV[1]) <= last then return 0 end
for i = 3, #ARGV, 2 do
  local added = now + log2(ARGV[i + 1])
  local stored = redis.call('ZSCORE', KEYS[1], ARGV[i])
  stored = stored and tonumber(stored) or -math.huge
  local high, low = math.max(added, stored), math.min(added, stored)
  write('ZADD', KEYS[1], string.format('%.17g', high + log2(1 + 2 ^ (low - high))), ARGV[i])
end
local least = now - 7
if #redis.call('ZRANGE', KEYS[1], -2 * most, -2 * most) > 0 then
  least = math.max(least, redis.call('ZRANGE', KEYS[1], -most, -most, 'WITHSCORES')[2])
end
write('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.17g', least))
write('EXPIRE', KEYS[1], math.ceil(7 * ARGV[2]))
write('HSET', KEYS[2], 'batch', ARGV[1])
write('EXPIRE', KEYS[2], 3600)
return commit() or 1
"""
)

# KEYS trending. ARGV half_life_s, first and last place, from 0. Returns the time in half-lives,
# then item_ids, each before its score, the largest first.
READ_TRENDING = (
    READS
    + """
local time = redis.call('TIME')
local now = (time[1] + time[2] / 1000000) / ARGV[1]
local found = redis.call('ZRANGE', KEYS[1], ARGV[2], ARGV[3], 'REV', 'WITHSCORES')
return {string.format('%.17g', now), found}
"""
)
# KEYS some. ARGV commands. Returns those that the user may not run with such keys.
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
# What the scripts run, and what is run beside them. EVAL is not here: if CHECK answers, EVAL works.
RIGHTS = {"DEL", "EXPIRE", "HMGET", "HSET", "LPOS", "LPUSH", "LRANGE", "LTRIM", "TIME", "ZADD"}
RIGHTS |= {"LREM", "RPUSH", "TTL", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYSCORE", "ZSCORE"}
