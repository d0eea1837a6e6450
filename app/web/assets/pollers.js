// A hundred pollers in this browser, and what they cost the database.

import { getJson, pause, send, ServiceError } from "./service.js";

const $ = (id) => document.getElementById(id);
const POLLERS = 100;
const EVERY = 1; // seconds
const LASTS = 30; // seconds
const whole = new Intl.NumberFormat("en");
const ratio = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });

export class Pollers {
  #live;
  #newest;
  #failed;
  #running = null;

  // `live` counts loads, `newest` returns the id of the job to poll or null, `failed` shows errors.
  constructor(live, newest, failed) {
    this.#live = live;
    this.#newest = newest;
    this.#failed = failed;
    $("pollers-button").addEventListener("click", () => {
      if (this.#running === null) this.#run().catch(failed);
      else this.#running.abort();
    });
  }

  async #run() {
    const id = this.#newest();
    if (id === null) {
      $("pollers-result").textContent = "There is no job to poll yet: request a video first.";
      return;
    }
    const running = (this.#running = new AbortController());
    const polls = { sent: 0, hits: 0 };
    $("pollers-button").textContent = "Stop the pollers";
    $("pollers-result").textContent = `${POLLERS} pollers are polling job ${id}.`;
    $("pollers-numbers").hidden = false;
    try {
      const before = await this.#counted();
      const show = async () => this.#show(polls, before, await this.#counted());
      const end = setTimeout(() => running.abort(), LASTS * 1000);
      const pollers = Array.from({ length: POLLERS }, () => poll(id, polls, running));
      const done = Promise.all(pollers);
      const watching = (async () => {
        while (!running.signal.aborted) {
          await show();
          await pause(EVERY, running.signal);
        }
      })();
      try {
        await Promise.all([done, watching]);
      } finally {
        clearTimeout(end);
        running.abort();
      }
      $("pollers-result").textContent = await show();
    } catch (error) {
      $("pollers-result").textContent = "";
      throw error;
    } finally {
      this.#running = null;
      $("pollers-button").textContent = `Start ${POLLERS} pollers`;
    }
  }

  // Return the counters of the service; null if this key may not read them.
  async #counted() {
    try {
      return await this.#live.refresh();
    } catch (error) {
      if (error instanceof ServiceError && error.status === 403) return null;
      throw error;
    }
  }

  #show(polls, before, after) {
    const share = polls.sent > 0 ? (100 * polls.hits) / polls.sent : 0;
    $("pollers-polls").textContent = whole.format(polls.sent);
    $("pollers-hits").textContent = `${ratio.format(share)} %`;
    if (before === null || after === null) {
      $("pollers-loads").textContent = $("pollers-ratio").textContent = "operator's key needed";
      return `${whole.format(polls.sent)} polls. The cache answered ${ratio.format(share)} % of them.`;
    }
    // Both of the service's counters, so that polls of others meanwhile do not matter.
    const loads = after.loads - before.loads;
    const all = after.polls - before.polls;
    const each = all > 0 ? ratio.format(loads / all) : "–";
    $("pollers-loads").textContent = whole.format(loads);
    $("pollers-ratio").textContent = each;
    return `${whole.format(polls.sent)} polls on ${after.backend}: ${each} loads per poll.`;
  }
}

async function poll(id, polls, running) {
  await pause(Math.random() * EVERY, running.signal);
  let tag = null;
  while (!running.signal.aborted) {
    try {
      const headers = tag === null ? {} : { "If-None-Match": tag };
      const response = await send(`api/v2/jobs/${id}`, { headers, signal: running.signal });
      tag = response.headers.get("ETag");
      polls.sent += 1;
      if (/;\s*hit/.test(response.headers.get("Cache-Status") ?? "")) polls.hits += 1;
      if (response.status === 200) await response.arrayBuffer();
    } catch (error) {
      if (running.signal.aborted) return;
      running.abort();
      throw error;
    }
    await pause(EVERY, running.signal);
  }
}
