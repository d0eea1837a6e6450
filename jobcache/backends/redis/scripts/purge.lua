-- Empty the cell, unless it holds a fence.
-- KEYS[1] the cell   ARGV[1] the server's incarnation_id
-- Returns 1 if the cell held an entry or a lease, else 0.
local cell = redis.pcall('GET', KEYS[1]) -- an error if the key has another type; then it is deleted
if cell == false then
  return 0
end
local written = type(cell) == 'string' and (cell:match('^[ELF]1|(%w+)|') or cell:match('^E2|(%w+)|'))
if written and written ~= ARGV[1] then
  redis.call('DEL', KEYS[1]) -- of another incarnation of the server
  return 0
end
local fence = type(cell) == 'string' and cell:match('^F1|%w+|%d+|,[%w,]+,$')
if fence and redis.call('PTTL', KEYS[1]) >= 0 then -- without an expiry it is not ours
  return 0
end
return redis.call('DEL', KEYS[1])
