-- Take the lease of an empty cell.
-- KEYS[1] the cell   ARGV[1] ticket   ARGV[2] the lease's life in ms
-- Returns false if the lease is now the ticket's, else the cell, which stays as it is.
local cell = redis.call('GET', KEYS[1])
local lease = 'L1|' .. ARGV[1]
if cell and cell ~= lease then
  return cell
end
if not cell then
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[2])
end
return false
