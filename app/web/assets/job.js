// One job: its progress, its storyboard, what its client may do with it, and its video.

import { access, follow, getJson, post, send } from "./service.js";

const $ = (id) => document.getElementById(id);
const STEPS = { pending: 0, storyboarding: 0, storyboard_ready: 1, approved: 2, rendering: 3, completed: 4 };
const SAYS = {
  pending: "The job waits for its storyboard.",
  storyboarding: "The storyboard is being written.",
  storyboard_ready: "The storyboard is ready, and needs your approval.",
  approved: "The storyboard is approved. The video can be rendered.",
  rendering: "The video is being rendered.",
  completed: "The video is ready.",
  failed: "The job has failed.",
  cancelled: "The job was cancelled.",
};

export class JobView {
  #following = new AbortController();
  #job = null;
  #reached = 0;
  #shown = { storyboard: null, video: null };
  #objectUrl = null;
  #failed;
  #connected;

  // `failed` is called with errors, `connected` with whether the stream of the job has a connection.
  constructor(failed, connected) {
    this.#failed = failed;
    this.#connected = connected;
    for (const button of document.querySelectorAll("[data-action]")) {
      button.addEventListener("click", () => this.#act(button));
    }
  }

  get id() { return this.#job?.id ?? null; }

  // Show a job, and follow it until it has ended or another one is shown.
  async show(id) {
    this.#following.abort();
    const following = (this.#following = new AbortController());
    this.#job = null;
    this.#reached = 0;
    this.#shown = { storyboard: null, video: null };
    $("job").hidden = $("storyboard").hidden = $("video").hidden = true; // until its first version has come
    $("job-status").textContent = "";
    try {
      const changed = (job) => { if (!following.signal.aborted) this.#render(job); };
      await follow(`api/v2/jobs/${id}/events`, following.signal, changed, this.#connected);
    } catch (error) {
      if (following.signal.aborted) return;
      $("job").hidden = true;
      this.#failed(error);
    }
  }

  async #act(button) {
    const id = this.id;
    if (id === null) return; // its button has just been hidden
    try {
      const job = await post(`api/v2/jobs/${id}/${button.dataset.action}`);
      if (id === this.id) this.#render(job);
    } catch (error) {
      this.#failed(error);
    }
  }

  #render(job) {
    if (this.#job !== null && (job.id !== this.#job.id || job.version < this.#job.version)) return;
    this.#job = job;
    $("job").hidden = false;
    $("job-heading").textContent = `Job ${job.id}`;
    $("job-prompt").textContent = job.prompt;
    this.#renderSteps(job);
    const says = job.error === null ? SAYS[job.status] : `${SAYS[job.status]} ${job.error}`;
    if ($("job-status").textContent !== says) $("job-status").textContent = says; // read out once

    const { percent, message } = job.progress;
    $("progress").hidden = job.status !== "rendering";
    $("bar").value = percent;
    $("percent").textContent = `${Math.round(percent)} %`;
    $("message").textContent = message;
    document.title = job.status === "rendering" ? `${Math.round(percent)} % – jobcache` : `${job.status.replace("_", " ")} – jobcache`;

    const possible = { approve: job.status === "storyboard_ready", render: job.status === "approved", cancel: !job.terminal };
    for (const button of document.querySelectorAll("[data-action]")) {
      const show = possible[button.dataset.action];
      // A keyboard's focus must not get lost with its button.
      if (!show && button === document.activeElement) $("job-heading").focus();
      button.hidden = !show;
    }
    this.#once("storyboard", job.storyboard_url, (url) => this.#renderStoryboard(url));
    this.#once("video", job.status === "completed" ? job.video_url : null, (url) => this.#renderVideo(url));
  }

  #renderSteps(job) {
    this.#reached = STEPS[job.status] ?? this.#reached;
    [...$("steps").children].forEach((step, at) => {
      step.classList.toggle("done", at < this.#reached || (at === this.#reached && job.status === "completed"));
      if (at === this.#reached && !job.terminal) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    });
  }

  async #once(part, url, render) {
    if (url === null || this.#shown[part] === url) return;
    this.#shown[part] = url;
    try {
      await render(url);
    } catch (error) {
      this.#shown[part] = null;
      this.#failed(error);
    }
  }

  async #renderStoryboard(url) {
    const { scenes } = await getJson(url);
    if (this.#job?.storyboard_url !== url) return;
    $("storyboard").querySelector("ol").replaceChildren(...scenes.map((scene) => {
      const item = document.createElement("li");
      const frame = document.createElement("div");
      frame.className = "frame";
      frame.style.background = scene.background;
      frame.style.borderColor = scene.accent;
      frame.textContent = scene.title;
      const text = document.createElement("p");
      text.textContent = `${scene.index}. ${scene.text} (${scene.seconds} s)`;
      item.append(frame, text);
      return item;
    }));
    $("storyboard").hidden = false;
  }

  async #renderVideo(url) {
    const video = $("video").querySelector("video");
    const here = new URL(url, document.baseURI).origin === location.origin;
    let source = url;
    if (here && access.key !== null) {
      // A video element cannot send a key.
      const blob = await (await send(url)).blob();
      if (this.#job?.video_url !== url) return;
      if (this.#objectUrl !== null) URL.revokeObjectURL(this.#objectUrl);
      source = this.#objectUrl = URL.createObjectURL(blob);
    }
    video.hidden = !here; // an external worker may keep it elsewhere
    if (here) video.src = source;
    $("download").href = source;
    if (here) $("download").download = `job-${this.#job.id}.mp4`;
    else $("download").removeAttribute("download");
    $("video").hidden = false;
  }
}
