-- Takes back a request that consume.lua counted.
--
-- KEYS     one per bucket: its place
-- ARGV[1]  the time of counting, milliseconds
-- ARGV[2]  cost
-- ARGV[3]  and on, one per bucket: field of the record that counted it

local at = tonumber(ARGV[1])
local cost = tonumber(ARGV[2])
for b = 1, #KEYS do
    local record = redis.call('HGET', KEYS[b], ARGV[b + 2])
    if record then
        local ended = struct.unpack('>d', record)
        local state = cmsgpack.unpack(string.sub(record, 9))
        for s = 1, #state, 4 do
            -- Another request may have begun the next window since then.
            local count = ended - state[s + 1] - state[s] <= at and s + 3 or s + 2
            state[count] = math.max(0, state[count] - cost)
        end
        redis.call('HSET', KEYS[b], ARGV[b + 2], struct.pack('>d', ended) .. cmsgpack.pack(state))
    end
end
