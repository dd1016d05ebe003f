-- wrk: every request has an id of its own; the summary comes out as one JSON line.
-- Arguments: path, run, and "close" for a new connection per request.
local counter = 0
local head, tail

function init(args)
   head = "GET " .. args[1] .. "?id=" .. args[2] .. "-"
   tail = " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n"
   if args[3] == "close" then tail = tail .. "Connection: close\r\n" end
   tail = tail .. "\r\n"
end

function request()
   counter = counter + 1
   return head .. counter .. tail
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"seconds":%.6f,"bytes":%d,"p50_us":%.1f,"p99_us":%.1f,"errors":%d}\n',
      summary.requests, summary.duration / 1e6, summary.bytes,
      latency:percentile(50), latency:percentile(99),
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
