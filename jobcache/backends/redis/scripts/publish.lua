-- Publish a committed version, or withdraw the token.
-- KEYS[1] the cell   ARGV[1] the server's incarnation_id   ARGV[2] token
-- ARGV[3] version, -1 for an unversioned entry, -2 to withdraw   ARGV[4] lifetime in ms   ARGV[5] the entry's cell
-- ARGV[6] the unversioned entry's own token, else empty
-- Returns a value of `PublishResult`.
local key, incarnation_id, token, version = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local withdrawn, unversioned = version == -2, version == -1

local function remove()
  redis.call('DEL', key)
  return 'removed'
end

local function store(word)
  if withdrawn or ARGV[4] == '0' then
    return remove()
  end
  local done = redis.pcall('SET', key, ARGV[5], 'PX', ARGV[4])
  if done.err then
    redis.call('DEL', key) -- no memory for the entry: remove the cell, so that nothing old is served
    return done
  end
  return word
end

local cell = redis.pcall('GET', key)
if cell == false then
  return 'nothing'
end
if type(cell) ~= 'string' then
  return remove() -- of a wrong type
end
local written = cell:match('^[ELF]1|(%w+)|') or cell:match('^E2|(%w+)|')
if written and written ~= incarnation_id then
  redis.call('DEL', key) -- of another incarnation of the server
  return 'nothing'
end

local fence_version, tokens = cell:match('^F1|%w+|(%d+)|(,[%w,]+,)$')
if fence_version then
  fence_version = tonumber(fence_version)
  if version > fence_version then
    fence_version = version
  end
  tokens = tokens:gsub(',' .. token .. ',', ',')
  if tokens ~= ',' then
    redis.call('SET', key, string.format('F1|%s|%.0f|%s', incarnation_id, fence_version, tokens), 'KEEPTTL')
    return 'fenced'
  end
  if version < fence_version then
    return remove()
  end
  return store('stored')
end

if cell:sub(1, 3) == 'L1|' then
  if cell == 'L1|' .. incarnation_id .. '|' .. token then
    return store('stored')
  end
  if withdrawn then
    return 'kept'
  end
  return remove()
end

local held_token = cell:match('^E2|%w+|(%w+)|%d+|%d+|%d+|%l+|%x+|[^|\n]*\n')
if held_token then
  if withdrawn or (unversioned and ARGV[4] ~= '0' and held_token == ARGV[6]) then
    return 'kept' -- the same load: its publish is repeated
  end
  if unversioned and held_token == token then
    return store('stored') -- the reader saw this entry before it began to load
  end
  return remove() -- it may be older
end

local held = tonumber(cell:match('^E1|%w+|(%d+)|%d+|%d+|%d+|%l+|%x+|[%d-]+|[^|\n]*|[^|\n]*\n'))
if not held then
  return remove() -- unreadable: it may be older
end
if withdrawn then
  return 'kept'
end
if unversioned then
  return remove() -- it may be older
end
if held > version then
  return 'kept'
end
if held == version then
  return store('prolonged')
end
return remove()
