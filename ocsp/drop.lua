-- Removes a record if it is still the one that was looked at.
-- KEYS[1] the shard, ARGV[1] the field, ARGV[2] the record as it was read.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  return redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
