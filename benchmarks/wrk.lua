-- Sends the requests of a file in turn, and tells as JSON what came of them.
-- A line of the file: a path and, after a tab, a header to send with it, or nothing. In a header, %d
-- is a number that no other request has.

local requests = {}
local numbered = false
local sent = 0
local began = os.time() * 1000000  -- or the next run would begin with the same numbers

function init(arguments)
   for line in io.lines(arguments[1]) do
      local path, name, value = line:match("^([^\t]*)\t([^:]*):? ?(.*)$")
      local headers = {}
      if name ~= "" then
         headers[name] = value
      end
      numbered = numbered or value:find("%d", 1, true) ~= nil
      requests[#requests + 1] = wrk.format("GET", path, headers)
   end
end

function request()
   sent = sent + 1
   local chosen = requests[(sent - 1) % #requests + 1]
   return numbered and chosen:format(began + sent) or chosen
end

local PERCENTS = { 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100 }

function done(summary, latency, _)
   local failed = summary.errors
   local at = {}
   for _, percent in ipairs(PERCENTS) do
      local value = percent < 100 and latency:percentile(percent) or latency.max
      at[#at + 1] = string.format('"%g": %.3f', percent, value / 1000)
   end
   io.write(string.format(
      '\nJSON {"answers": %d, "seconds": %.6f, "bytes": %d, "failed": %d, "latency_ms": {%s}}\n',
      summary.requests,
      summary.duration / 1e6,
      summary.bytes,
      failed.connect + failed.read + failed.write + failed.status + failed.timeout,
      table.concat(at, ", ")
   ))
end
