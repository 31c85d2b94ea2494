-- Begins a new generation, unless somebody has begun one since the caller looked.
-- KEYS[1] hash (heal.lua). ARGV: the generation that the caller knew, a new token.
local now = redis.call('HGET', KEYS[1], 'generation')
if now and now ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'generation', ARGV[2])
return 1
