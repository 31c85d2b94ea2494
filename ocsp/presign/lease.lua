-- Shares slices out among the presigners that are alive.
-- KEYS[1] hash: "m:<name>" -> end of that member's lease in ms, "s:<slice>" -> name.
-- ARGV: name, lease in ms (0: leave), number of slices, then the slices that the
-- caller keeps. A slice that it had and does not keep is free; so are those of
-- members whose lease has ended. The caller gets free ones up to its fair share.
-- Returns the fair share, then the caller's slices.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local name, ttl, slices = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local alive, owner, members = {}, {}, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local kind, id = all[i]:sub(1, 2), all[i]:sub(3)
  if kind == 'm:' then
    if tonumber(all[i + 1]) > now and id ~= name then
      alive[id] = true
      members = members + 1
    else
      redis.call('HDEL', KEYS[1], all[i])
    end
  elseif kind == 's:' then
    owner[id] = all[i + 1]
  end
end
local keep = {}
if ttl > 0 then
  redis.call('HSET', KEYS[1], 'm:' .. name, string.format('%.0f', now + ttl))
  members = members + 1
  for i = 4, #ARGV do keep[ARGV[i]] = true end
end
local fair = members > 0 and math.ceil(slices / members) or 0
local mine, free = {}, {}
for s = 0, slices - 1 do
  local id = tostring(s)
  if owner[id] == name and keep[id] then
    mine[#mine + 1] = s
  elseif not (owner[id] and alive[owner[id]]) then
    free[#free + 1] = id
    if owner[id] then redis.call('HDEL', KEYS[1], 's:' .. id) end
  end
end
for _, id in ipairs(free) do
  if ttl > 0 and #mine < fair then
    redis.call('HSET', KEYS[1], 's:' .. id, name)
    mine[#mine + 1] = tonumber(id)
  end
end
table.insert(mine, 1, fair)
return mine
