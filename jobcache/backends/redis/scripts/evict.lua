-- Empty the cells among these keys that are of our namespace, of the server's present incarnation.
-- KEYS the keys, of one server   ARGV[1] the incarnation_id
-- Returns how many cells were emptied.
local dropped = 0
for _, key in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', key, 0, 63) -- of a wrong type: an error, and none of ours
  if type(head) == 'string' and head:match('^[ELF]%d|(%w+)|') == ARGV[1] then
    dropped = dropped + redis.call('DEL', key)
  end
end
return dropped
