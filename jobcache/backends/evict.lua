-- Empty the cell if a backend of this library wrote it.
-- KEYS[1] the cell
-- Returns 1 if it did, else 0.
local cell = redis.pcall('GET', KEYS[1])
if type(cell) == 'string' and cell:match('^[ELF]%d|') then
  return redis.call('DEL', KEYS[1])
end
return 0
