-- Delete the keys that hold cells of our namespace, written on the present incarnation of the server.
-- KEYS the keys, all of one server   ARGV[1] the incarnation_id, which also names the namespace
-- Returns the number of deleted keys.
local dropped = 0
for _, key in ipairs(KEYS) do
  local head = redis.pcall('GETRANGE', key, 0, 63) -- an error if the key has another type; then it is not ours
  if type(head) == 'string' and head:match('^[ELF]%d|(%w+)|') == ARGV[1] then
    dropped = dropped + redis.call('DEL', key)
  end
end
return dropped
