-- Fence a cell: nothing in it is served until every token has left the fence.
-- KEYS[1] the cell   ARGV[1] the server's incarnation_id   ARGV[2] token   ARGV[3] a new fence's lifetime in ms
local incarnation_id, token = ARGV[1], ARGV[2]
local cell = redis.pcall('GET', KEYS[1]) -- an error if the key has another type; then it is replaced
if type(cell) ~= 'string' then
  cell = ''
end
local written = cell:match('^[ELF]1|(%w+)|') or cell:match('^E2|(%w+)|')
if written and written ~= incarnation_id then
  cell = '' -- of another incarnation of the server
end
local done
local fence_version, tokens = cell:match('^F1|%w+|(%d+)|(,[%w,]+,)$')
if fence_version then
  -- An existing fence keeps its deadline. Else the token of a dead writer would stay while others write.
  if not tokens:find(',' .. token .. ',', 1, true) then
    tokens = tokens .. token .. ','
  end
  done = redis.pcall('SET', KEYS[1], 'F1|' .. incarnation_id .. '|' .. fence_version .. '|' .. tokens, 'KEEPTTL')
else
  fence_version = cell:match('^E1|%w+|(%d+)|%d+|%d+|%d+|%l+|%x+|[%d-]+|[^|\n]*|[^|\n]*\n') or '0'
  done = redis.pcall('SET', KEYS[1], 'F1|' .. incarnation_id .. '|' .. fence_version .. '|,' .. token .. ',', 'PX', ARGV[3])
end
if done.err then
  redis.call('DEL', KEYS[1]) -- no memory for a fence: remove the cell, so that nothing old is served
end
return done
