-- Makes a CRL the one of its path, unless one of a higher number stands that is still
-- valid. A value is "number thisUpdate nextUpdate bytes chunks digest".
-- KEYS[1]: hash path -> value. ARGV: path, value, now in Unix seconds.
-- Returns {1, what stood} or {0}.
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local number, next = old:match('^(%d+) %d+ (%d+)')
  if tonumber(number) > tonumber(ARGV[2]:match('^%d+')) and tonumber(next) > tonumber(ARGV[3]) then
    return {0}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, old}
