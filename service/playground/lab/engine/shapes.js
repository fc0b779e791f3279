/**
 * The data sets of the live lab, in the page's plane: those of training/lab/shapes.py times PLANE, and a spiral.
 *
 * Point `index` is a function of the seed and its index, so sets that use other indices are fresh points.
 */

import { PLANE } from "./catalog.js";
import { DATA, Noise } from "./philox.js";

const RADIUS = 0.7 * PLANE;
/** Steps of the random numbers of a point. */
const WHICH = 0, EPS = 1, ANGLE = 2;

/** The centres of a mixture of Gaussians with equal weights, [[x, y], ...]; null for other data. */
export function centres(settings) {
  if (settings.data === "ring") {
    const angle = (2 * Math.PI) / settings.modes;
    return Array.from({ length: settings.modes }, (_, k) => [RADIUS * Math.cos(k * angle), RADIUS * Math.sin(k * angle)]);
  }
  if (settings.data === "grid") {
    const line = [-1, -0.5, 0, 0.5, 1].map((value) => RADIUS * value);
    return line.flatMap((x) => line.map((y) => [x, y]));
  }
  if (settings.data === "two_gaussians") return [[-settings.distance / 2, 0], [settings.distance / 2, 0]];
  return null;
}

/** Points `first`, ..., `first + count - 1` of the data set: Float32Array(2 * count). */
export function points(settings, first, count) {
  if (settings.data === "drawn") return drawn(settings.points, first, count);
  const noise = new Noise(settings.seed, DATA), out = noise.rows(first, count, 2, EPS), place = placing(settings, noise);
  const deviation = settings.deviation ?? settings.noise;
  for (let k = 0; k < count; k++) {
    const [x, y] = place(first + k);
    out[2 * k] = x + deviation * out[2 * k];
    out[2 * k + 1] = y + deviation * out[2 * k + 1];
  }
  return out;
}

/** The function from a point's index to the place that its noise is added to. */
function placing(settings, noise) {
  const middles = centres(settings);
  if (middles) return (index) => middles[Math.floor(noise.uniform(index, WHICH) * middles.length)];
  if (settings.data === "moons") {
    return (index) => {
      const angle = Math.PI * noise.uniform(index, ANGLE), side = noise.uniform(index, WHICH) < 0.5 ? 1 : -1;
      return [side * 0.6 * PLANE * (Math.cos(angle) - 0.5), side * 0.6 * PLANE * (Math.sin(angle) - 0.25)];
    };
  }
  // One and a half turns; the square root makes the points about equally dense along the curve.
  return (index) => {
    const turned = Math.sqrt(noise.uniform(index, ANGLE)), angle = 3 * Math.PI * turned;
    return [RADIUS * turned * Math.cos(angle), RADIUS * turned * Math.sin(angle)];
  };
}

/** The drawn points, repeated as often as necessary. */
function drawn(all, first, count) {
  return Float32Array.from({ length: 2 * count }, (_, k) => all[(first + (k >> 1)) % all.length][k % 2]);
}
