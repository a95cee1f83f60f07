-- A topic and its subscriptions.  Redis runs one script at a time, so each
-- command below is atomic.
--
-- KEYS[1] is the log, a stream with the topic's messages.  A subscription
-- SUB has a consumer group on it.  The group knows which messages are new,
-- and which are pending: handed out or waiting, but not acknowledged.  A
-- group knows neither ordering keys, nor long delays, nor who may still
-- settle a delivery.  These keys add that:
--
--   LOG:due:SUB        sorted set: pending ids, with the time (ms) from
--                      which on each may be taken.  The end of a lease and
--                      of the delay of a nack are such times.
--   LOG:holder:SUB     hash: the tokens of leased ids
--   LOG:attempts:SUB   hash: how often each pending id was taken
--   LOG:key:SUB        hash: the ordering keys of pending ids
--   LOG:queue:SUB:KEY  list: the pending ids of a key, oldest first
--   LOG:wake:SUB       stream: grows when a message may be taken earlier
--                      than a waiting receiver expects
--   LOG:seen           sorted set: ephemeral subscriptions, with the time
--                      (ms) of their last sign of life
--
-- Order (R8, R10): a message with a key is in LOG:due only if it is the
-- first of its queue, or if it was taken in a run that began with the
-- first.  So nobody can take a message of a key while an earlier one is
-- leased or delayed.

local log = KEYS[1]
local seen = log .. ':seen'
-- After so many ms without a sign of life, an ephemeral subscription is
-- dropped (Q1).
local IDLE = 3600 * 1000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function keys_of(subscription)
  local keys = {subscription = subscription, queue = log .. ':queue:' .. subscription .. ':'}
  for _, name in ipairs({'due', 'holder', 'attempts', 'key', 'wake'}) do
    keys[name] = log .. ':' .. name .. ':' .. subscription
  end
  return keys
end

local function groups()
  local found = {}
  if redis.call('EXISTS', log) == 1 then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', log)) do
      local group = {}
      for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
      found[group.name] = group
    end
  end
  return found
end

-- Let receivers that wait ask again.
local function wake(keys)
  redis.call('XADD', keys.wake, 'MAXLEN', 1, '*', 'wake', '')
end

local function drop(subscription)
  local keys = keys_of(subscription)
  for _, key in ipairs(redis.call('HVALS', keys.key)) do redis.call('DEL', keys.queue .. key) end
  redis.call('DEL', keys.due, keys.holder, keys.attempts, keys.key, keys.wake)
  redis.call('ZREM', seen, subscription)
  return redis.call('EXISTS', log) == 1 and redis.call('XGROUP', 'DESTROY', log, subscription) or 0
end

-- Drop the ephemeral subscriptions of processes that died.  Whoever sends
-- or receives does so.
local function drop_idle()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now - IDLE)) do drop(name) end
end

local function is_before(id, other)
  local ms, seq = id:match('(%d+)-(%d+)')
  local other_ms, other_seq = other:match('(%d+)-(%d+)')
  if ms ~= other_ms then return tonumber(ms) < tonumber(other_ms) end
  return tonumber(seq) < tonumber(other_seq)
end

-- Delete messages that no subscription needs: those before the oldest
-- pending one, and before the newest one read.
local function trim()
  local first = nil
  for name, group in pairs(groups()) do
    local id = group['last-delivered-id']
    if group.pending > 0 then id = redis.call('XPENDING', log, name)[2] end
    if not first or is_before(id, first) then first = id end
  end
  if first then redis.call('XTRIM', log, 'MINID', '~', first) end
end

-- The first message of a queue may be taken, unless it is leased or delayed
-- already.
local function release_first(keys, key)
  local first = redis.call('LINDEX', keys.queue .. key, 0)
  if first and not redis.call('ZSCORE', keys.due, first) then
    redis.call('ZADD', keys.due, now, first)
    return true
  end
  return false
end

-- The subscription does not need the message any more.  Return whether that
-- frees another one.
local function finish(keys, id)
  redis.call('XACK', log, keys.subscription, id)
  redis.call('ZREM', keys.due, id)
  redis.call('HDEL', keys.holder, id)
  redis.call('HDEL', keys.attempts, id)
  local key = redis.call('HGET', keys.key, id)
  if not key then return false end
  redis.call('HDEL', keys.key, id)
  redis.call('LREM', keys.queue .. key, 1, id)
  return release_first(keys, key)
end

-- A new message of the log becomes pending.  Return its size in bytes.
local function arrive(keys, id, fields)
  local key, size = '', 0
  for i = 1, #fields, 2 do
    if fields[i] == 'key' then key = fields[i + 1] end
    size = size + #fields[i + 1]
  end
  if key == '' then
    redis.call('ZADD', keys.due, now, id)
  else
    redis.call('HSET', keys.key, id, key)
    redis.call('RPUSH', keys.queue .. key, id)
    release_first(keys, key)
  end
  return size
end

-- Return the messages that may be taken together, beginning with one that
-- is due: it alone, or a run of its key.
local function run_from(keys, first, limit)
  -- A message that this call has already taken in another run is leased.
  local due = redis.call('ZSCORE', keys.due, first)
  if not due or tonumber(due) > now then return {} end
  local key = redis.call('HGET', keys.key, first)
  if not key then return {first} end
  local ids = redis.call('LRANGE', keys.queue .. key, 0, limit - 1)
  -- Its lease or delay is over, but an earlier message of the key is still
  -- leased: it has to wait.
  if ids[1] ~= first then
    redis.call('ZREM', keys.due, first)
    redis.call('HDEL', keys.holder, first)
    return {}
  end
  local run = {}
  for _, id in ipairs(ids) do
    if tonumber(redis.call('ZSCORE', keys.due, id) or now) > now then break end
    run[#run + 1] = id
  end
  return run
end

local commands = {}

-- Return 1 if the topic exists; create it if allowed.
function commands.open(create)
  if redis.call('EXISTS', log) == 0 then
    if create ~= 'all' then return 0 end
    -- The only way to make an empty stream.
    redis.call('XGROUP', 'CREATE', log, '~', '$', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', log, '~')
  end
  return 1
end

-- Return 1 if the subscription exists; create it if allowed.
function commands.join(subscription, create, is_ephemeral)
  if not groups()[subscription] then
    if create == 'never' then return 0 end
    redis.call('XGROUP', 'CREATE', log, subscription, '$')
  end
  if is_ephemeral == '1' then redis.call('ZADD', seen, now, subscription) end
  return 1
end

function commands.subscriptions()
  local names = {}
  for name in pairs(groups()) do names[#names + 1] = name end
  return names
end

function commands.wake(subscription)
  if groups()[subscription] then wake(keys_of(subscription)) end
  return 1
end

function commands.delete(subscription)
  return drop(subscription)
end

-- Store messages, given as data, attributes and key.  Return their ids, or
-- nothing if the topic does not exist.
function commands.publish()
  local ids = {}
  for i = 2, #ARGV, 3 do
    local id = redis.call(
      'XADD', log, 'NOMKSTREAM', '*', 'data', ARGV[i], 'attributes', ARGV[i + 1], 'key', ARGV[i + 2])
    if not id then return {} end
    ids[#ids + 1] = id
  end
  drop_idle()
  -- Without a subscription nobody will ever receive them.
  if not next(groups()) then redis.call('XTRIM', log, 'MAXLEN', 0) end
  return ids
end

-- Lease messages.  Return them; or, if there are none, what to wait for:
-- the id of the last message that was read, the id of the last wake-up, and
-- the ms until the next lease or delay is over (-1 for never).
function commands.take(subscription, token, limit, lease, bytes)
  limit, lease, bytes = tonumber(limit), tonumber(lease), tonumber(bytes)
  local keys = keys_of(subscription)
  drop_idle()
  if redis.call('ZSCORE', seen, subscription) then redis.call('ZADD', seen, now, subscription) end
  local size = 0
  for _ = redis.call('ZCOUNT', keys.due, '-inf', now) + 1, limit do
    local read = size < bytes and
      redis.call('XREADGROUP', 'GROUP', subscription, 'events', 'COUNT', 1, 'STREAMS', log, '>')
    if not read then break end
    size = size + arrive(keys, unpack(read[1][2][1]))
  end
  local taken = {}
  size = 0
  for _, first in ipairs(redis.call('ZRANGEBYSCORE', keys.due, '-inf', now, 'LIMIT', 0, limit)) do
    for _, id in ipairs(run_from(keys, first, limit)) do
      if #taken == limit or size >= bytes then return {taken} end
      local entry = redis.call('XRANGE', log, id, id)[1]
      if entry then
        redis.call('ZADD', keys.due, now + lease, id)
        redis.call('HSET', keys.holder, id, token)
        taken[#taken + 1] = {id, redis.call('HINCRBY', keys.attempts, id, 1), entry[2]}
        for _, text in ipairs(entry[2]) do size = size + #text end
      else
        finish(keys, id)  -- somebody has deleted it from the stream
      end
    end
  end
  local position = groups()[subscription]['last-delivered-id']
  local last = redis.call('XREVRANGE', keys.wake, '+', '-', 'COUNT', 1)[1]
  local due = redis.call('ZRANGE', keys.due, 0, 0, 'WITHSCORES')[2]
  return {taken, position, last and last[1] or '0-0', due and tonumber(due) - now or -1}
end

-- Extend leases of messages, given as id and token.  Return 1 for each that
-- was extended, 0 for each that is lost.
function commands.extend(subscription, lease)
  local keys = keys_of(subscription)
  if redis.call('ZSCORE', seen, subscription) then redis.call('ZADD', seen, now, subscription) end
  local results = {}
  for i = 4, #ARGV, 2 do
    local is_held = redis.call('HGET', keys.holder, ARGV[i]) == ARGV[i + 1]
    if is_held then redis.call('ZADD', keys.due, now + tonumber(lease), ARGV[i]) end
    results[#results + 1] = is_held and 1 or 0
  end
  return results
end

-- Settle messages, given as id, token, outcome and delay (ms).  Return 1
-- for each that was settled, 0 for each that is not held with this token
-- any more.
function commands.settle(subscription)
  local keys = keys_of(subscription)
  local results, must_wake = {}, false
  for i = 3, #ARGV, 4 do
    local id, token, outcome, delay = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local is_held = redis.call('HGET', keys.holder, id) == token
    if is_held and outcome == 'ACK' then
      must_wake = finish(keys, id) or must_wake
    elseif is_held then
      redis.call('HDEL', keys.holder, id)
      if outcome == 'RETURN' then redis.call('HINCRBY', keys.attempts, id, -1) end
      local key = redis.call('HGET', keys.key, id)
      if outcome == 'RETURN' and key and redis.call('LINDEX', keys.queue .. key, 0) ~= id then
        redis.call('ZREM', keys.due, id)  -- it follows the first of its key
      else
        redis.call('ZADD', keys.due, now + delay, id)
      end
      must_wake = true
    end
    results[#results + 1] = is_held and 1 or 0
  end
  if must_wake then wake(keys) end
  trim()
  return results
end

return commands[ARGV[1]](ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
