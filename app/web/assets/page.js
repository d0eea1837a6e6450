// Connects the parts of the page: the form, the job, the statistics, the pollers and the key.

import { access, ConnectionLost, getJson, post, ServiceError } from "./service.js";
import { JobView } from "./job.js";
import { LiveView } from "./live.js";
import { Pollers } from "./pollers.js";

const $ = (id) => document.getElementById(id);
const RECENT = 5;

// --- errors and the connection ---

const lost = new Set();

function connection(part) {
  return (connected) => {
    if (connected) lost.delete(part);
    else lost.add(part);
    $("connection").hidden = lost.size === 0;
    const text = lost.size === 0 ? "" : `Connection lost (${[...lost].sort().join(", ")}). Trying again…`;
    if ($("connection").textContent !== text) $("connection").textContent = text;
  };
}

function failed(error) {
  if (!(error instanceof ServiceError || error instanceof ConnectionLost)) throw error;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

function forgetProblem() {
  $("problem").hidden = true;
  $("problem").textContent = "";
}

// --- the key ---

let asking = null;

access.ask = (reason) => {
  $("key-button").hidden = false;
  if (asking === null) {
    asking = new Promise((resolve) => $("key-dialog").addEventListener("close", resolve, { once: true }));
    asking.finally(() => { asking = null; });
    $("key-reason").textContent = reason;
    $("key-forget").hidden = access.key === null;
    $("key").value = "";
    $("key-dialog").showModal();
    $("key").focus();
  }
  return asking;
};
$("key-button").hidden = access.key === null;
$("key-button").addEventListener("click", () => access.ask(""));
$("key-form").addEventListener("submit", () => { access.key = $("key").value.trim(); refresh(); });
$("key-forget").addEventListener("click", () => { access.key = null; location.reload(); });
$("key-close").addEventListener("click", () => $("key-dialog").close());

// --- jobs ---

const view = new JobView(failed, connection("job"));
const live = new LiveView(connection("statistics"));
let newest = null;
new Pollers(live, () => view.id ?? newest, failed);

$("request").addEventListener("submit", async (event) => {
  event.preventDefault();
  forgetProblem();
  const body = {
    client_id: $("client").value,
    prompt: $("prompt").value,
    seconds_per_scene: Number($("seconds").value),
  };
  if ($("scenes").value !== "") body.scenes = Number($("scenes").value);
  sessionStorage.setItem("jobcache.client", body.client_id);
  try {
    const job = await post("api/v2/jobs", body, { "Idempotency-Key": randomName() });
    location.hash = job.id;
    refresh();
  } catch (error) {
    failed(error);
  }
});

// A browser can only show what is wrong with a field that is not hidden.
$("request").addEventListener("invalid", (event) => {
  const options = event.target.closest("details");
  if (options !== null) options.open = true;
}, true);

// Return a name that nobody else uses. `crypto.randomUUID` needs TLS or loopback.
function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function showNamed() {
  const named = /^#([1-9][0-9]*)$/.exec(location.hash);
  if (named === null) return;
  forgetProblem();
  view.show(Number(named[1]));
}

async function refresh() {
  try {
    const { items } = await getJson(`api/v2/jobs?limit=${RECENT}`);
    newest = items[0]?.id ?? null;
    $("recent").hidden = items.length === 0;
    $("recent").querySelector("ul").replaceChildren(...items.map((job) => {
      const link = document.createElement("a");
      link.href = `#${job.id}`;
      link.textContent = `Job ${job.id}: ${job.prompt}`;
      const item = document.createElement("li");
      item.append(link);
      return item;
    }));
  } catch (error) {
    if (!(error instanceof ServiceError && error.status === 401)) failed(error);
  }
}

$("client").value = sessionStorage.getItem("jobcache.client") ?? "demo";
window.addEventListener("hashchange", showNamed);
showNamed();
refresh();
live.run();
