-- Nothing in this cell is served until every ticket has left the fence.
-- KEYS[1] the cell   ARGV[1] ticket   ARGV[2] a new fence's life in ms
local cell = redis.pcall('GET', KEYS[1]) -- of a wrong type: an error, and replaced
if type(cell) ~= 'string' then
  cell = ''
end
local done
local floor, tickets = cell:match('^F1|(%d+)|(,[%w,]+,)$')
if floor then
  -- A standing fence keeps its deadline, or a writer that died would hold up a busy key for ever.
  if not tickets:find(',' .. ARGV[1] .. ',', 1, true) then
    tickets = tickets .. ARGV[1] .. ','
  end
  done = redis.pcall('SET', KEYS[1], 'F1|' .. floor .. '|' .. tickets, 'KEEPTTL')
else
  floor = cell:match('^E1|(%d+)|%d+|%d+|%d+|%l+|%x+|[%d-]+|[^|\n]*|[^|\n]*\n') or '0'
  done = redis.pcall('SET', KEYS[1], 'F1|' .. floor .. '|,' .. ARGV[1] .. ',', 'PX', ARGV[2])
end
if done.err then
  redis.call('DEL', KEYS[1]) -- no memory for a fence: at least nothing old is served
end
return done
