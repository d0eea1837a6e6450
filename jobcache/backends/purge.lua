-- Empty the cell, but for a fence, which stays.
-- KEYS[1] the cell
-- Returns 1 if it held something to drop, else 0.
local cell = redis.pcall('GET', KEYS[1]) -- of a wrong type: an error, and dropped
if cell == false or (type(cell) == 'string' and cell:match('^F1|%d+|,[%w,]+,$')) then
  return 0
end
return redis.call('DEL', KEYS[1])
