-- wrk: send the requests that a file holds, in turn, and print what came of them as one line of JSON.
-- A request in the file: its path, its headers a line each, an empty line, its body in one line; "---" between two.
local requests = {}
local turn = 0

function init(args)
    local path, headers, part
    local function add(body)
        requests[#requests + 1] = wrk.format("POST", path, headers, body)
    end
    part = "path"
    for line in io.lines(args[1]) do
        if part == "path" then
            path, headers, part = line, {}, "headers"
        elseif part == "headers" and line == "" then
            part = "body"
        elseif part == "headers" then
            local name, value = line:match("^(.-): (.*)$")
            headers[name] = value
        elseif part == "body" then
            add(line)
            part = "end"
        elseif line == "---" then
            part = "path"
        end
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end

function done(summary, latency, _)
    io.write(string.format(
        '{"requests": %d, "seconds": %.6f, "p50": %d, "p99": %d, "not_2xx": %d, "broken": %d, "timeouts": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
        summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write, summary.errors.timeout))
end
