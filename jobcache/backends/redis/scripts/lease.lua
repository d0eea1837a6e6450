-- Take the lease of an empty cell.
-- KEYS[1] the cell   ARGV[1] the server's stamp   ARGV[2] ticket   ARGV[3] the lease's life in ms
-- Returns false if the lease is now the ticket's, else the cell, which stays as it is.
local stamp = ARGV[1]
local cell = redis.call('GET', KEYS[1])
local written = cell and cell:match('^[ELF]1|(%w+)|')
if written and written ~= stamp then
  cell = false -- of another server's life
end
local lease = 'L1|' .. stamp .. '|' .. ARGV[2]
if cell and cell ~= lease then
  return cell
end
if not cell then
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[3])
end
return false
