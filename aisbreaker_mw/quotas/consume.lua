-- Counts one request in all windows of all buckets, or in none, by the rule of sliding.py.
--
-- KEYS     one per bucket
-- ARGV[1]  the time, milliseconds; empty for the server's own
-- ARGV[2]  cost
-- ARGV[3]  and on, one per bucket: MessagePack array of amount and length (milliseconds) of each window
--
-- A bucket is stored as a MessagePack array. For each window it holds the length, the end of the window in progress, the previous
-- count and the current count. It expires when nothing of it is left.
--
-- Returns a string of five numbers, which a client reads in a third of the time of a list:
-- "1 window remaining left now"  admitted: the window nearest its limit, and the milliseconds until the window in progress ends
-- "0 window remaining wait now"  refused: the refusing window that takes longest, and the milliseconds until the request would pass
-- Windows are numbered from 1 over all buckets.

local now
if ARGV[1] == '' then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
else
    now = tonumber(ARGV[1])
end
local cost = tonumber(ARGV[2])

-- floor(count * left / length), exact even if the product is beyond the exact integers of a number.
local function fade(count, left, length)
    local whole = math.floor(count / length)
    return whole * left + math.floor((count - whole * length) * left / length)
end

-- The longest time left of a window at which at most `room` of `count` remain.
local function latest(count, room, length)
    local left = math.floor(((room + 1) * length - 1) / count)
    while fade(count, left, length) > room do left = left - 1 end
    while fade(count, left + 1, length) <= room do left = left + 1 end
    return left
end

local function reply(admitted, window, remaining, milliseconds)
    return string.format('%d %d %.0f %.0f %.0f', admitted, window, remaining, milliseconds, now)
end

local stored = redis.call('MGET', unpack(KEYS))
local states = {}
local number = 0
local nearest, least, nearest_left, nearest_length
local refusing, refusing_remaining, refusing_wait, longest, longest_length

for b = 1, #KEYS do
    local windows = cmsgpack.unpack(ARGV[b + 2])
    local old = stored[b] and cmsgpack.unpack(stored[b]) or {}
    local state = {}
    states[b] = state
    local s = 1
    for i = 1, #windows, 2 do
        local amount, length = windows[i], windows[i + 1]
        local fin, previous, current = now - length, 0, 0
        local o = s
        if old[o] ~= length then
            -- The bucket was stored with other windows.
            o = 1
            while old[o] and old[o] ~= length do o = o + 4 end
        end
        if old[o] then
            fin, previous, current = old[o + 1], old[o + 2], old[o + 3]
        end

        local left = fin - now
        if left > length then
            left = length -- the server's clock went back
        elseif left <= 0 then
            if left > -length then
                fin, previous, current = fin + length, current, 0
                left = left + length
            else
                fin, previous, current = now + length, 0, 0
                left = length
            end
        end
        state[s], state[s + 1], state[s + 2], state[s + 3] = length, fin, previous, current + cost
        s = s + 4

        number = number + 1
        local remaining = amount - current - fade(previous, left, length)
        if remaining < cost then
            local room, wait, rank = amount - cost, length, math.huge
            if room >= current then
                wait = left - latest(previous, room - current, length)
                rank = wait
            elseif room >= 0 then
                wait = left + length - latest(current, room, length)
                rank = wait
            end
            if not refusing or rank > longest or (rank == longest and length > longest_length) then
                refusing, refusing_remaining, refusing_wait = number, math.max(0, remaining), wait
                longest, longest_length = rank, length
            end
        elseif not nearest or remaining < least or (remaining == least and length > nearest_length) then
            nearest, least, nearest_left, nearest_length = number, remaining, left, length
        end
    end
end

if refusing then
    return reply(0, refusing, refusing_remaining, refusing_wait)
end

for b = 1, #KEYS do
    local state = states[b]
    local last = now + 1
    for s = 1, #state, 4 do
        last = math.max(last, state[s] + state[s + 1])
    end
    redis.call('SET', KEYS[b], cmsgpack.pack(state), 'PX', last - now)
end
return reply(1, nearest, least - cost, nearest_left)
