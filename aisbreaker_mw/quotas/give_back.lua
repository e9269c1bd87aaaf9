-- Takes back a request that consume.lua counted.
--
-- KEYS     one per bucket
-- ARGV[1]  the time of counting, milliseconds
-- ARGV[2]  cost

local at = tonumber(ARGV[1])
local cost = tonumber(ARGV[2])
for b = 1, #KEYS do
    local stored = redis.call('GET', KEYS[b])
    if stored then
        local state = cmsgpack.unpack(stored)
        for s = 1, #state, 4 do
            -- Another request may have begun the next window since then.
            local count = state[s + 1] - state[s] <= at and s + 3 or s + 2
            state[count] = math.max(0, state[count] - cost)
        end
        redis.call('SET', KEYS[b], cmsgpack.pack(state), 'KEEPTTL')
    end
end
