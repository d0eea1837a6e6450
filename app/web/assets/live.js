// The statistics of the cache: numbers since the start, and plots of the last minutes.

import { ConnectionLost, getJson, nextKey, pause, ServiceError } from "./service.js";

const $ = (id) => document.getElementById(id);
const EVERY = 2; // seconds
const KEPT = 150; // samples: five minutes

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const percent = (value) => (value === null ? "–" : `${short.format(value)} %`);

const OPERATIONS = { hit: "Hit", miss: "Miss", database_load: "Load", publish: "Publish", long_poll: "Long poll" };
const sum = (numbers) => Object.values(numbers).reduce((total, each) => total + each, 0);

function duration(microseconds) {
  if (microseconds < 1000) return `${short.format(microseconds)} µs`;
  if (microseconds < 1_000_000) return `${short.format(microseconds / 1000)} ms`;
  return `${short.format(microseconds / 1_000_000)} s`;
}

export class LiveView {
  #last = null;
  #plots = [];
  #connected;

  // `connected` is called with whether the last request was answered.
  constructor(connected) {
    this.#connected = connected;
    this.#plots = [
      new Plot("Hit rate", ["%"], (sample) => [sample.hitRate], 100),
      new Plot("Per second", ["polls", "loads"], (sample) => [sample.polls, sample.loads]),
      new Plot("Latency of hits, mean", ["µs"], (sample) => [sample.hitUs]),
      new Plot("Long polls and streams", ["open"], (sample) => [sample.held]),
    ];
    $("plots").append(...this.#plots.map((plot) => plot.figure));
  }

  // Refresh the statistics until the page is closed, but not while it is hidden.
  async run() {
    for (;;) {
      if (document.hidden) {
        await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
        continue;
      }
      let wait = EVERY;
      try {
        await this.refresh();
        this.#connected(true);
      } catch (error) {
        if (error instanceof ServiceError && [401, 403].includes(error.status)) {
          $("live-content").hidden = true;
          $("live-message").textContent = error.status === 401
            ? "The statistics need a key."
            : "The statistics need an operator's key; this key may request videos.";
          await nextKey();
          continue;
        }
        if (error instanceof ServiceError) wait = error.retryAfter;
        else if (error instanceof ConnectionLost) this.#connected(false);
        else throw error;
      }
      await pause(wait);
    }
  }

  // Fetch the statistics and show them. Return what all processes have counted since their start.
  async refresh() {
    const document = await getJson("api/v2/cache/stats");
    const now = { at: performance.now(), ...counts(document) };
    if (this.#last === null || now.at - this.#last.at > 900 * EVERY) { // the pollers refresh more often
      if (this.#last !== null && now.reads >= this.#last.reads) this.#plot(document.held, this.#last, now);
      this.#last = now;
    }
    this.#render(document);
    return { ...now, backend: document.statistics.backend };
  }

  #plot(held, before, now) {
    const since = (name) => now[name] - before[name];
    const seconds = since("at") / 1000;
    const share = (part, all) => (since(all) > 0 ? since(part) / since(all) : null);
    const hitRate = share("hits", "reads");
    const sample = {
      hitRate: hitRate === null ? null : 100 * hitRate,
      polls: since("polls") / seconds,
      loads: since("loads") / seconds,
      hitUs: share("hitUs", "hits"),
      held: held.waits + held.streams,
    };
    for (const plot of this.#plots) plot.add(sample);
  }

  #render({ statistics, message, processes, unresponsive_processes: unresponsive }) {
    $("live-message").textContent = `${message}.`;
    $("live-content").hidden = false;
    $("backend").textContent = statistics.backend;
    $("hit-rate").textContent = percent(statistics.total_requests > 0 ? statistics.hit_rate : null);
    $("breaker").textContent = breaker(statistics);
    $("feed").textContent = feed(statistics);
    rows("latency", Object.entries(OPERATIONS).map(([name, says]) => {
      const { count, p50, p95, p99 } = statistics.latency_us[name];
      return [says, whole.format(count), ...[p50, p95, p99].map((each) => (count > 0 ? duration(each) : "–"))];
    }));
    const answered = processes.map(({ process, statistics: each, held }) => [
      process,
      whole.format(sum(each.polls)),
      percent(each.total_requests > 0 ? each.hit_rate : null),
      whole.format(each.database_loads),
      each.entries === null ? "–" : whole.format(each.entries),
      whole.format(held.waits + held.streams),
      breaker(each),
      feed(each),
    ]);
    const silent = unresponsive.map((process) => [process, "no answer", "", "", "", "", "", ""]);
    rows("processes", [...answered, ...silent]);
  }
}

function breaker({ backend, breaker: { state, pending } }) {
  if (backend === "null") return "–";
  const waiting = pending === null ? "; all keys to repair" : pending > 0 ? `; keys to repair: ${pending}` : "";
  return (state === "open" ? "open: store skipped" : state) + waiting;
}

function feed({ feed: found }) {
  return found === null ? "not used" : found.state;
}

function counts({ statistics }) {
  const { polls, total_requests: reads, database_loads: loads, latency_us: { hit } } = statistics;
  return { polls: sum(polls), reads, loads, hits: hit.count, hitUs: hit.total };
}

function rows(id, cells) {
  $(id).replaceChildren(...cells.map((row) => {
    const line = document.createElement("tr");
    line.append(...row.map((text, at) => {
      const cell = document.createElement(at === 0 ? "th" : "td");
      if (at === 0) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
    return line;
  }));
}

// A small plot of one or two series. Its caption shows the last values as text.
class Plot {
  #name;
  #units;
  #pick;
  #top;
  #series;
  #lines = [];
  #texts = [];
  #svg;

  constructor(name, units, pick, top = null) {
    this.#name = name;
    this.#units = units;
    this.#pick = pick;
    this.#top = top;
    this.#series = units.map(() => []);
    this.figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.append(`${name}: `);
    this.#svg = svg("svg", { viewBox: "0 0 149 40", preserveAspectRatio: "none", role: "img", "aria-label": `${name}: no values yet` });
    units.forEach((_, at) => {
      const kind = units.length === 1 ? "only" : ["first", "second"][at];
      const text = document.createElement("strong");
      text.className = kind;
      if (at > 0) caption.append(", ");
      caption.append(text);
      this.#texts.push(text);
      this.#lines.push(svg("polyline", { class: kind }));
    });
    this.#svg.append(...this.#lines);
    this.figure.append(caption, this.#svg);
  }

  add(sample) {
    this.#pick(sample).forEach((value, at) => {
      const series = this.#series[at];
      series.push(value);
      if (series.length > KEPT) series.shift();
      this.#texts[at].textContent = value === null ? "–" : `${short.format(value)} ${this.#units[at]}`;
    });
    const top = this.#top ?? Math.max(1, ...this.#series.flat().filter((value) => value !== null));
    this.#series.forEach((series, at) => {
      const points = series.map((value, x) => (value === null ? null : `${x + KEPT - series.length},${(38 - (36 * value) / top).toFixed(1)}`));
      this.#lines[at].setAttribute("points", points.filter((point) => point !== null).join(" "));
    });
    this.#svg.setAttribute("aria-label", `${this.#name} in the last five minutes. ${this.#units.map((unit, at) => {
      const known = this.#series[at].filter((value) => value !== null);
      return known.length === 0 ? `${unit}: none` : `${unit}: from ${short.format(Math.min(...known))} to ${short.format(Math.max(...known))}`;
    }).join("; ")}.`);
  }
}

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
