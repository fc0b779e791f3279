/** Principal components in the plane, as models/linear.py and models/families/pca.py. */

import { Noise, SAMPLES } from "../philox.js";

/** Points whose reconstructions are drawn. */
const SHOWN = 200;

export class Pca {
  /** Update 0 projects on the coordinate axes; the only update finds the principal ones. */
  constructor({ code, seed }, points) {
    this.points = points;
    this.code = code;
    this.noise = new Noise(seed, SAMPLES);
    this.finished = false;
    this.components = { mean: [0, 0], variances: [1, 1], directions: [[1, 0], [0, 1]] };
  }

  update() {
    this.components = principalComponents(this.points);
    this.finished = true;
  }

  state() {
    return { components: this.components, finished: this.finished };
  }

  restore(state) {
    Object.assign(this, state);
  }

  /** The point that the code of (x, y) decodes to. */
  reconstruct(x, y) {
    const { mean, directions } = this.components, out = [...mean];
    for (const [a, b] of directions.slice(0, this.code)) {
      const z = a * (x - mean[0]) + b * (y - mean[1]);
      out[0] += z * a;
      out[1] += z * b;
    }
    return out;
  }

  sample(count) {
    const { mean, variances, directions } = this.components, out = new Float32Array(2 * count);
    const eps = this.noise.rows(0, count, this.code);
    for (let k = 0; k < count; k++) {
      out.set(mean, 2 * k);
      for (let j = 0; j < this.code; j++) {
        const z = Math.sqrt(variances[j]) * eps[k * this.code + j];
        out[2 * k] += z * directions[j][0];
        out[2 * k + 1] += z * directions[j][1];
      }
    }
    return out;
  }

  curves(reference) {
    let error = 0;
    for (let k = 0; k < reference.length; k += 2) {
      const [x, y] = this.reconstruct(reference[k], reference[k + 1]);
      error += (reference[k] - x) ** 2 + (reference[k + 1] - y) ** 2;
    }
    return { "reconstruction error": error / (reference.length / 2) };
  }

  /** The axes, two deviations to each side, then points with their reconstructions. */
  layers() {
    const { mean: [x, y], variances, directions } = this.components;
    const axes = directions.slice(0, this.code).flatMap(([a, b], k) => {
      const reach = 2 * Math.sqrt(variances[k]);
      return [x - reach * a, y - reach * b, x + reach * a, y + reach * b];
    });
    const shown = [...this.points.subarray(0, 2 * SHOWN)];
    const lines = shown.flatMap((value, k) => (k % 2 ? [] : [value, shown[k + 1], ...this.reconstruct(value, shown[k + 1])]));
    return { segments: Float32Array.from([...axes, ...lines]) };
  }
}

/** Mean, variances (largest first) and directions of points [n, 2]; the largest entry of a direction is positive. */
function principalComponents(points) {
  const n = points.length / 2, mean = [0, 0];
  for (let k = 0; k < points.length; k++) mean[k % 2] += points[k] / n;
  let xx = 0, xy = 0, yy = 0;
  for (let k = 0; k < points.length; k += 2) {
    const x = points[k] - mean[0], y = points[k + 1] - mean[1];
    xx += (x * x) / (n - 1);
    xy += (x * y) / (n - 1);
    yy += (y * y) / (n - 1);
  }
  const middle = (xx + yy) / 2, half = Math.hypot((xx - yy) / 2, xy), angle = Math.atan2(2 * xy, xx - yy) / 2;
  const positive = ([a, b]) => (Math.abs(a) >= Math.abs(b) ? a : b) < 0 ? [-a, -b] : [a, b];
  return {
    mean,
    variances: [middle + half, Math.max(middle - half, 0)],
    directions: [positive([Math.cos(angle), Math.sin(angle)]), positive([-Math.sin(angle), Math.cos(angle)])],
  };
}
