/** The kernel density estimate of models/families/kde.py; each update narrows the search for the bandwidth. */

import { densityField } from "../measures.js";
import { CHOICE_STEP, Noise, ORDER, SAMPLES } from "../philox.js";
import { meanLogDensity } from "./mixture.js";

const RATIO = (Math.sqrt(5) - 1) / 2;
/** The search ends if the logarithm of the bandwidth is known so well. */
const PRECISION = 1e-3;
/** Of the points, so that equal points have a bandwidth. */
const MIN_DEVIATION = 1e-2;
const MAX_KERNELS = 1600, MAX_HELD_OUT = 400;

export class Kde {
  /** A fifth of the points, at most MAX_HELD_OUT, chooses the bandwidth; the others are the kernels' centres. */
  constructor({ bandwidth, spread, seed }, points) {
    const count = points.length / 2, heldOut = Math.min(MAX_HELD_OUT, Math.max(1, Math.floor(count / 5)));
    const order = new Noise(seed, ORDER).permutation(0, count);
    const rows = (from, to) =>
      Float32Array.from([...order.subarray(from, to)].flatMap((k) => [points[2 * k], points[2 * k + 1]]));
    this.centres = rows(heldOut, heldOut + MAX_KERNELS);
    this.heldOut = rows(0, heldOut);
    this.noise = new Noise(seed, SAMPLES);
    this.spread = spread;
    const deviation = Math.max(meanDeviation(this.centres), MIN_DEVIATION);
    const ends = bandwidth ? [bandwidth, bandwidth] : [1e-3 * deviation, 2 * deviation];
    this.range = ends.map(Math.log);
  }

  get bandwidth() {
    return Math.exp((this.range[0] + this.range[1]) / 2);
  }

  get finished() {
    return this.range[1] - this.range[0] <= PRECISION;
  }

  /** One step of golden-section search for the bandwidth that is likeliest for the held-out points. */
  update() {
    if (this.finished) return;
    const [low, high] = this.range, a = high - RATIO * (high - low), b = low + RATIO * (high - low);
    const score = (h) => this.meanLogDensity(this.heldOut, Math.exp(h));
    this.range = score(a) > score(b) ? [low, b] : [a, high];
  }

  meanLogDensity(points, bandwidth) {
    return meanLogDensity(points, (offset) => this.logDensity(points[offset], points[offset + 1], bandwidth));
  }

  logDensity(x, y, bandwidth) {
    const { centres } = this, factor = 1 / (2 * bandwidth ** 2);
    let nearest = Infinity, sum = 0;
    for (let k = 0; k < centres.length; k += 2) {
      nearest = Math.min(nearest, (x - centres[k]) ** 2 + (y - centres[k + 1]) ** 2);
    }
    for (let k = 0; k < centres.length; k += 2) {
      sum += Math.exp((nearest - (x - centres[k]) ** 2 - (y - centres[k + 1]) ** 2) * factor);
    }
    return Math.log(sum) - nearest * factor - Math.log((centres.length / 2) * 2 * Math.PI * bandwidth ** 2);
  }

  state() {
    return this.range;
  }

  restore(range) {
    this.range = range;
  }

  view({ spread }) {
    this.spread = spread;
  }

  sample(count) {
    const out = this.noise.rows(0, count, 2), scale = this.spread * this.bandwidth, kernels = this.centres.length / 2;
    for (let k = 0; k < count; k++) {
      const chosen = Math.floor(this.noise.uniform(k, CHOICE_STEP) * kernels);
      for (let i = 0; i < 2; i++) out[2 * k + i] = this.centres[2 * chosen + i] + scale * out[2 * k + i];
    }
    return out;
  }

  curves(reference) {
    return {
      "log-likelihood": this.meanLogDensity(reference, this.bandwidth),
      "log-likelihood of held-out points": this.meanLogDensity(this.heldOut, this.bandwidth),
      bandwidth: this.bandwidth,
    };
  }

  layers() {
    return {
      field: densityField(([x, y]) => this.logDensity(x, y, this.bandwidth)),
      kernels: { bandwidth: this.bandwidth, centres: this.centres.slice() },
    };
  }
}

/** The mean of both coordinates' standard deviations. */
function meanDeviation(points) {
  const n = points.length / 2;
  const deviation = (i) => {
    let sum = 0, squares = 0;
    for (let k = i; k < points.length; k += 2) sum += points[k] / n;
    for (let k = i; k < points.length; k += 2) squares += (points[k] - sum) ** 2;
    return Math.sqrt(squares / Math.max(n - 1, 1));
  };
  return (deviation(0) + deviation(1)) / 2;
}
