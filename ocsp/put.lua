-- Writes one record unless what stands is better: a revoked record is never
-- replaced by a good one, nor a later by an earlier one (record.go, "stands").
-- KEYS[1] the shard, ARGV[1] the field, ARGV[2] the record.
-- Returns 1 if it was written and the status is as before, 2 if it was written and
-- the status is new (first record, or first revoked one), 0 if an equal or later
-- record stands, -1 if a revoked one stands against a good one.
local old = redis.call('HGET', KEYS[1], ARGV[1])
local head, this = struct.unpack('>BI4', ARGV[2])
local result = 2
if old and #old >= 5 then
  local old_head, old_this = struct.unpack('>BI4', old)
  if old_head >= 128 and head < 128 then
    return -1
  end
  if (old_head >= 128) == (head >= 128) then
    if old_this >= this then
      return 0
    end
    result = 1
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return result
