-- Take the lease, if the cell is empty.
-- KEYS[1] the cell   ARGV[1] the server's incarnation_id   ARGV[2] token   ARGV[3] the lease's lifetime in ms
-- Returns false if the token has the lease now, else the cell, which is not changed.
local incarnation_id = ARGV[1]
local cell = redis.call('GET', KEYS[1])
local written = cell and (cell:match('^[ELF]1|(%w+)|') or cell:match('^E2|(%w+)|'))
if written and written ~= incarnation_id then
  cell = false -- of another incarnation of the server
end
local lease = 'L1|' .. incarnation_id .. '|' .. ARGV[2]
if cell and cell ~= lease then
  return cell
end
if not cell then
  redis.call('SET', KEYS[1], lease, 'PX', ARGV[3])
end
return false
