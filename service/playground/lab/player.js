// Plays experiments in step: all show the same update, and training waits for the page, not the page for training.

import { Experiment } from "./experiment.js";
import { Pace } from "./pace.js";

const FRAME = 1000 / 30; // milliseconds between frames, at least

const animationFrame = () => new Promise(requestAnimationFrame);
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A player of experiments. `onChange()` is called after each change of what there is to show, `onError(error, index)` for errors. */
export class Player {
  experiments = [];
  /** What to show of each experiment: its frame at `update`, or at its end before that. */
  frames = [];
  /** The update that is shown, and the furthest that has been trained. */
  update = 0;
  furthest = 0;
  playing = false;
  /** Updates per second while it plays. */
  speed = Infinity;
  #target = null; // the update to go to
  #pace = new Pace();
  #elapsed = 0; // milliseconds of the last request
  #isDriving = false;

  constructor({ onChange, onError }) {
    this.onChange = onChange;
    this.onError = onError;
  }

  /** True if no experiment can be trained further. */
  get finished() {
    return this.experiments.length > 0 && this.experiments.every(({ frame }) => frame?.finished);
  }

  /** True while it plays, or is on the way to an update. */
  get isBusy() {
    return this.playing || this.#target !== null;
  }

  /** True until the last request is answered. */
  get isDriving() {
    return this.#isDriving;
  }

  /** The update on the way to which the player is, or null. */
  get target() {
    return this.#target;
  }

  /** Replace the experiments by new ones with these settings, and go to `update`. */
  async load(settings, update = 0) {
    for (const experiment of this.experiments) experiment.close();
    const experiments = (this.experiments = settings.map((each) => new Experiment(each)));
    if (!settings.length) this.playing = false;
    this.frames = [];
    this.update = this.furthest = 0;
    this.#target = update || null;
    this.#pace = new Pace();
    this.#isDriving = false; // a loop for the old experiments ends at its next turn
    await this.#each((experiment) => experiment.start());
    if (this.experiments === experiments) this.#drive();
  }

  play() {
    if (!this.experiments.length) return;
    this.playing = true;
    this.#target = null;
    this.onChange();
    this.#drive();
  }

  pause() {
    this.playing = false;
    this.#target = null;
    this.onChange();
  }

  /** Pause, and go to `update`: back in time, or forward by training. */
  seek(update) {
    this.playing = false;
    this.#target = Math.max(0, update);
    this.onChange();
    this.#drive();
  }

  /** Change parameters of experiment `index` that do not affect training. */
  view(index, values) {
    this.experiments[index]?.setView(values);
    this.#drive();
  }

  /** Make one request per turn until there is nothing left to do. */
  async #drive() {
    const { experiments } = this;
    if (this.#isDriving || !experiments.every(({ frame }) => frame)) return;
    this.#isDriving = true;
    while (this.experiments === experiments && (await this.#turn()));
    if (this.experiments !== experiments) return;
    this.#isDriving = false;
    this.onChange();
  }

  /** One request to each experiment; false if there is nothing to do. The page draws the last frame meanwhile. */
  async #turn() {
    if (this.experiments.some(({ hasView }) => hasView)) return this.#each((experiment) => experiment.applyView());
    if (this.#target !== null && this.#target <= this.furthest) {
      const update = this.#target;
      const done = await this.#each((experiment) => experiment.seek(update));
      if (this.#target === update) this.#target = null;
      this.onChange();
      return done;
    }
    if (this.finished) {
      this.playing = false;
      this.#target = null;
      this.onChange();
    }
    if (this.#target !== null) return this.#advance(Math.min(this.#pace.updates, this.#target - this.update));
    if (!this.playing) return false;
    const due = Math.max(1, Math.round((this.speed * Math.max(FRAME, this.#elapsed)) / 1000)); // to keep up with the speed
    const updates = Math.min(due, this.#pace.updates);
    const end = performance.now() + (1000 * updates) / this.speed;
    const done = await this.#advance(updates);
    const early = end - performance.now();
    if (early > 0) await sleep(early);
    return done;
  }

  /** Train for `updates` updates, and tell the pace how long this takes. */
  async #advance(updates) {
    const began = performance.now();
    const frames = this.#each((experiment) => experiment.step(updates));
    await animationFrame(); // none while the page is hidden: training rests too
    const done = await frames;
    this.#elapsed = performance.now() - began;
    if (done) this.#pace.add(updates, this.#elapsed);
    return done;
  }

  /** Send a request to all experiments and take their frames; false if one failed or the experiments were replaced. */
  async #each(request) {
    const { experiments } = this;
    const outcomes = await Promise.allSettled(experiments.map(request));
    if (this.experiments !== experiments) return false;
    this.frames = experiments.map(({ frame }) => frame);
    this.update = Math.max(0, ...this.frames.map((frame) => frame?.update ?? 0));
    this.furthest = Math.max(this.furthest, this.update);
    outcomes.forEach(({ reason }, index) => reason && this.onError(reason, index));
    const done = outcomes.every(({ status }) => status === "fulfilled");
    if (!done) this.pause();
    this.onChange();
    return done;
  }
}
