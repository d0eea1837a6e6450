-- Sends the requests of a file in turn, and prints what came of them as JSON.
-- A line of the file: a path and headers, separated by tabs. The first %d of a line is replaced by a
-- number that no other request has.

local starts = {}
local ends = {}  -- of the requests that have a number; false: it has none
local count = 0
local sent = 0
local began = tostring(os.time())  -- or the next run would begin with the same numbers

function init(arguments)
   for line in io.lines(arguments[1]) do
      local path = line:match("^[^\t]*")
      local headers = {}
      for name, value in line:gmatch("\t([^:\t]+): ?([^\t]*)") do
         headers[name] = value
      end
      local text = wrk.format("GET", path, headers)
      local first, last = text:find("%d", 1, true)
      count = count + 1
      starts[count] = first and text:sub(1, first - 1) .. began or text
      ends[count] = first and text:sub(last + 1)
   end
end

function request()
   local chosen = sent % count + 1
   sent = sent + 1
   local rest = ends[chosen]
   return rest and starts[chosen] .. sent .. rest or starts[chosen]
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
