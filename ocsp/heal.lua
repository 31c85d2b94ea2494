-- Notes that slices were swept whole, and says whether all are.
-- KEYS[1] hash: "generation" -> token, "<slice>" -> "1". ARGV: the token under which
-- the sweep began, the number of slices, the slices swept.
-- Returns -1 if another generation has begun: what was swept does not count.
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then
  return -1
end
for i = 3, #ARGV do
  redis.call('HSET', KEYS[1], ARGV[i], '1')
end
if redis.call('HLEN', KEYS[1]) - 1 >= tonumber(ARGV[2]) then
  return 1
end
return 0
