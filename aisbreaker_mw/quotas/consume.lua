-- Counts one request in all windows of all buckets, or in none, by the rule of sliding.py.
--
-- KEYS     one per bucket: its place, a hash of records (places.py)
-- ARGV[1]  the time, milliseconds; empty for the server's own
-- ARGV[2]  cost
-- ARGV[3]  most records of a place, shared ones aside
-- ARGV[4]  and on, four per bucket: field of its own record, of its slot's shared record, of the place's shared record; MessagePack
--          array of amount and length (milliseconds) of each window
--
-- A record is the time at which nothing of it is left (a double), and a MessagePack array. For each window the array holds the
-- length, how much earlier the window in progress ends than that time, the previous count and the current count. So a record of
-- three windows takes less than 64 bytes, and Redis keeps a place in its compact form. A record that has ended is dropped when its
-- place is full, or with the whole place.
--
-- Returns a string of numbers, which a client reads in a third of the time of a list:
-- "1 window remaining left now fields"  admitted: the window nearest its limit, and the milliseconds until the window in progress
--                                       ends
-- "0 window remaining wait now fields"  refused: the refusing window that takes longest, and the milliseconds until the request
--                                       would pass
-- Windows are numbered from 1 over all buckets. The fields are one digit per bucket: 1 its own record, 2 or 3 a shared one.

local SHARED = 2 -- most records of slots that share one, beyond those of ARGV[3]

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

local chosen = {}

local function reply(admitted, window, remaining, milliseconds)
    return string.format('%d %d %.0f %.0f %.0f %s', admitted, window, remaining, milliseconds, now, table.concat(chosen))
end

-- Drops the records of a place that have ended. Returns how many are left.
local function tidy(place)
    local records = redis.call('HGETALL', place)
    local left = #records / 2
    for r = 1, #records, 2 do
        if struct.unpack('>d', records[r + 1]) <= now then
            redis.call('HDEL', place, records[r])
            left = left - 1
        end
    end
    return left
end

-- Returns which of the three fields from ARGV[a] on counts a bucket, and its record if it exists.
local function find(place, a)
    local record = redis.call('HGET', place, ARGV[a])
    if record then return 1, record end
    local most = tonumber(ARGV[3])
    local size = redis.call('HLEN', place)
    if size >= most then size = tidy(place) end
    if size < most then return 1 end
    record = redis.call('HGET', place, ARGV[a + 1])
    if record or size < most + SHARED then return 2, record end
    return 3, redis.call('HGET', place, ARGV[a + 2])
end

local states = {}
local number = 0
local nearest, least, nearest_left, nearest_length
local refusing, refusing_remaining, refusing_wait, longest, longest_length

for b = 1, #KEYS do
    local a = 4 * b
    local windows = cmsgpack.unpack(ARGV[a + 3])
    local field, record = find(KEYS[b], a)
    chosen[b] = field
    local ended, old = 0, {}
    if record then
        ended, old = struct.unpack('>d', record), cmsgpack.unpack(string.sub(record, 9))
    end
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
            fin, previous, current = ended - old[o + 1], old[o + 2], old[o + 3]
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
    for s = 1, #state, 4 do state[s + 1] = last - state[s + 1] end
    redis.call('HSET', KEYS[b], ARGV[4 * b + chosen[b] - 1], struct.pack('>d', last) .. cmsgpack.pack(state))
    if redis.call('PTTL', KEYS[b]) < last - now then redis.call('PEXPIRE', KEYS[b], last - now) end
end
return reply(1, nearest, least - cost, nearest_left)
