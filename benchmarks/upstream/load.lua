-- Script of wrk: sends the requests in a file in turn, and prints the counts as one line of JSON.
-- The file holds for each request: the path, one line per header, an empty line, the body in one line, and "---".
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
