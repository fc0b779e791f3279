// One experiment: a model in training in a worker, its latest frame, and its curves so far.

/** The values of named curves by update, in increasing order. */
class Curves {
  #series = new Map();

  /** The names of the curves. */
  get names() {
    return [...this.#series.keys()];
  }

  /** The curve `name` as {updates, values}, or undefined. */
  get(name) {
    return this.#series.get(name);
  }

  /** Take the values of a frame. Training is deterministic, so an update that is known already has nothing new. */
  add(update, values) {
    for (const [name, value] of Object.entries(values)) {
      if (!this.#series.has(name)) this.#series.set(name, { updates: [], values: [] });
      const series = this.#series.get(name);
      if (series.updates.length && update <= series.updates.at(-1)) continue;
      series.updates.push(update);
      series.values.push(value);
    }
  }

  /** The value of the curve `name` at the last known update up to `update`, or undefined. */
  at(name, update) {
    const series = this.#series.get(name);
    return series?.values[series.updates.findLastIndex((known) => known <= update)];
  }
}

/** A model in training. Each request is answered by one frame; one request at a time. */
export class Experiment {
  frame = null;
  /** The training points, flat. */
  data = null;
  curves = new Curves();
  #worker = new Worker(new URL("engine/worker.js", import.meta.url), { type: "module" });
  #answer = null;
  #view = null;

  constructor(settings) {
    this.settings = settings;
    this.#worker.onmessage = ({ data }) => {
      if (data.type === "error") return this.#fail(data.message);
      this.frame = data;
      this.data ??= data.data;
      this.curves.add(data.update, data.curves);
      this.#answer?.resolve(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(`The training program stopped: ${event.message ?? "the browser could not load it"}. Reload the page.`);
    };
  }

  #fail(message) {
    this.#answer?.reject(new Error(message));
  }

  #request(message) {
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject };
      this.#worker.postMessage(message);
    });
  }

  /** Begin at update 0. */
  start() {
    return this.#request({ type: "start", settings: this.settings });
  }

  /** Train for `updates` updates. */
  step(updates) {
    return this.frame.finished ? Promise.resolve(this.frame) : this.#request({ type: "step", updates });
  }

  /** Return to what the model was at `update`. */
  seek(update) {
    return this.#request({ type: "seek", update });
  }

  /** Have parameters that do not affect training changed at the next `applyView`. */
  setView(values) {
    this.settings = { ...this.settings, ...values };
    this.#view = { ...this.#view, ...values };
  }

  /** True if there are such changes. */
  get hasView() {
    return this.#view !== null;
  }

  /** Show the current update with the changes of `setView`; the curves begin anew, since their samples were taken otherwise. */
  applyView() {
    if (!this.#view) return Promise.resolve(this.frame);
    const settings = this.#view;
    this.#view = null;
    this.curves = new Curves();
    return this.#request({ type: "view", settings });
  }

  /** End the worker, even while it computes. A pending request stays without an answer. */
  close() {
    this.#worker.terminate();
  }
}
