-- Empty the cell, but for a fence, which stays.
-- KEYS[1] the cell   ARGV[1] the server's incarnation_id
-- Returns 1 if it held something to drop, else 0.
local cell = redis.pcall('GET', KEYS[1]) -- of a wrong type: an error, and dropped
if cell == false then
  return 0
end
local written = type(cell) == 'string' and cell:match('^[ELF]1|(%w+)|')
if written and written ~= ARGV[1] then
  redis.call('DEL', KEYS[1]) -- of another incarnation of the server
  return 0
end
local fence = type(cell) == 'string' and cell:match('^F1|%w+|%d+|,[%w,]+,$')
if fence and redis.call('PTTL', KEYS[1]) >= 0 then -- without an end it is none of ours
  return 0
end
return redis.call('DEL', KEYS[1])
