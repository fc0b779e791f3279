/** What every model with gradient training shares. Its networks see the plane divided by PLANE, as the Python families. */

import { PLANE } from "../catalog.js";
import { Average, Batches, learningRate } from "../nets.js";
import { Noise, SAMPLES, TRAINING } from "../philox.js";
import { constant, scope, unrecorded } from "../tensor.js";

/** Points [n, 2] of the plane as a tensor in the networks' units. */
export const fromPlane = (points) => constant(points.length / 2, 2, points.map((value) => value / PLANE));

/** The numbers of a tensor [n, 2] as points of the plane. */
export const toPlane = ({ data }) => Float32Array.from(data, (value) => PLANE * value);

export class Trained {
  /** Subclasses set `optimizers` and `averages`, and define `train` and `evaluate`. */
  constructor(settings, points) {
    this.settings = settings;
    this.points = points;
    this.batches = new Batches(fromPlane(points).data, settings.batch, settings.seed);
    this.training = new Noise(settings.seed, TRAINING);
    this.noise = new Noise(settings.seed, SAMPLES);
    this.done = 0;
    this.terms = {};
  }

  /** Averages of `nets` that samples come from; with a half-life of 0 the nets themselves. */
  averaged(...nets) {
    this.averages = this.settings.ema ? nets.map((net) => new Average(net, this.settings.ema)) : [];
    return this.settings.ema ? this.averages.map(({ net }) => net) : nets;
  }

  get finished() {
    return this.done >= this.settings.updates;
  }

  /** One update of all networks; `train(lr)` sets `terms`, the losses. Throws Error if a loss is not finite. */
  update() {
    this.draws = 0;
    scope(() => this.train(learningRate(this.settings, this.done)));
    this.done++;
    const images = this.done * this.settings.batch * this.batchesPerUpdate;
    for (const average of this.averages) average.update(images, this.settings.batch * this.batchesPerUpdate);
    const wrong = Object.keys(this.terms).find((name) => !Number.isFinite(this.terms[name]));
    if (wrong) throw new Error(`${wrong} is not finite after update ${this.done}; a lower learning rate may help`);
  }

  get batchesPerUpdate() {
    return 1;
  }

  /** Fresh standard normals [rows, columns] of this update. */
  randn(rows, columns) {
    return constant(rows, columns, this.training.normals(this.draws++, this.done, rows * columns));
  }

  /** Fresh uniform numbers of this update, in doubles. */
  rand(count) {
    return this.training.uniforms(this.draws++, this.done, count);
  }

  /** What `body` returns, computed from the sampling weights without gradients; it may hold no tensors. */
  evaluate(body) {
    return scope(() => unrecorded(body));
  }

  /** All arrays that change in training. */
  arrays() {
    return [...this.optimizers, ...this.averages].flatMap((each) => each.arrays());
  }

  state() {
    return {
      arrays: this.arrays().map((data) => data.slice()), steps: this.optimizers.map(({ steps }) => steps),
      done: this.done, terms: this.terms,
    };
  }

  restore({ arrays, steps, done, terms }) {
    this.arrays().forEach((data, k) => data.set(arrays[k]));
    this.optimizers.forEach((optimizer, k) => (optimizer.steps = steps[k]));
    this.done = done;
    this.terms = terms;
  }

  /** Change settings that do not affect training. */
  view(settings) {
    Object.assign(this.settings, settings);
  }

  curves() {
    return this.terms;
  }
}
