/** Distances between samples and data, and the fields of histograms. As training/lab/distances.py. */

import { PLANE } from "./catalog.js";

/** Squares along each side of the plane in fields and histograms. */
export const SIZE = 40;
const JS_SIZE = 20;

/** W_1 of point sets [n, 2] of equal size: the mean distance of the optimal assignment, in units of the plane. */
export function wasserstein1(x, y) {
  const n = x.length / 2, cost = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) cost[i * n + j] = Math.hypot(x[2 * i] - y[2 * j], x[2 * i + 1] - y[2 * j + 1]);
  }
  const columnOf = assignment(cost, n);
  let total = 0;
  for (let i = 0; i < n; i++) total += cost[i * n + columnOf[i]];
  return total / n;
}

/** The column of each row in an assignment of least total `cost` [n, n]: shortest augmenting paths (Kuhn 1955; Jonker &
 * Volgenant 1987). */
function assignment(cost, n) {
  const rowPrice = new Float64Array(n), columnPrice = new Float64Array(n);
  const rowOf = new Int32Array(n).fill(-1), columnOf = new Int32Array(n).fill(-1);
  const distance = new Float64Array(n), from = new Int32Array(n), done = new Uint8Array(n);
  for (let start = 0; start < n; start++) {
    distance.fill(Infinity);
    done.fill(0);
    let row = start, length = 0, column = -1;
    do {
      let nearest = Infinity, next = -1;
      const base = row * n, price = rowPrice[row];
      for (let j = 0; j < n; j++) {
        if (done[j]) continue;
        const through = length + cost[base + j] - price - columnPrice[j];
        if (through < distance[j]) {
          distance[j] = through;
          from[j] = row;
        }
        if (distance[j] < nearest) {
          nearest = distance[j];
          next = j;
        }
      }
      column = next;
      length = nearest;
      done[column] = 1;
      row = rowOf[column];
    } while (row >= 0);
    // The prices keep every reduced cost at least 0, and 0 on the assignment.
    rowPrice[start] += length;
    for (let j = 0; j < n; j++) {
      if (!done[j] || j === column) continue;
      columnPrice[j] -= length - distance[j];
      rowPrice[rowOf[j]] += length - distance[j];
    }
    while (column >= 0) {
      const owner = from[column], previous = columnOf[owner];
      rowOf[column] = owner;
      columnOf[owner] = column;
      column = owner === start ? -1 : previous;
    }
  }
  return columnOf;
}

/** Counts of points [n, 2] in size^2 squares of the plane, row 0 at the top; points outside count at the edge. */
export function histogram(points, size) {
  const counts = new Float64Array(size * size);
  const cell = (value) => Math.min(size - 1, Math.max(0, Math.floor(((value + PLANE) / (2 * PLANE)) * size)));
  for (let k = 0; k < points.length; k += 2) counts[(size - 1 - cell(points[k + 1])) * size + cell(points[k])]++;
  return counts;
}

/** JS(p, q) in nats, 0 to log 2, of the histograms of two point sets [n, 2]. */
export const jensenShannon = (x, y) => divergence(histogram(x, JS_SIZE), histogram(y, JS_SIZE));

/** JS in nats of two tables of counts. */
function divergence(p, q) {
  const total = (table) => table.reduce((sum, value) => sum + value, 0), totalP = total(p), totalQ = total(q);
  let sum = 0;
  for (let k = 0; k < p.length; k++) {
    const a = p[k] / totalP, b = q[k] / totalQ;
    if (a > 0) sum += a * Math.log((2 * a) / (a + b));
    if (b > 0) sum += b * Math.log((2 * b) / (a + b));
  }
  return sum / 2;
}

/** The density of points [n, 2] in the SIZE^2 squares, sum 1, smoothed by a Gaussian with the deviation of a square. */
export function smoothed(points) {
  const weights = Array.from({ length: 9 }, (_, k) => Math.exp(-((k - 4) ** 2) / 2));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const along = (table, stride, other) => {
    const out = new Float64Array(SIZE * SIZE);
    for (let line = 0; line < SIZE; line++) {
      for (let k = 0; k < SIZE; k++) {
        let sum = 0;
        for (let d = -4; d <= 4; d++) {
          if (k + d >= 0 && k + d < SIZE) sum += weights[d + 4] * table[line * other + (k + d) * stride];
        }
        out[line * other + k * stride] = sum / total;
      }
    }
    return out;
  };
  const counts = histogram(points, SIZE).map((value) => value / (points.length / 2));
  return along(along(counts, 1, SIZE), SIZE, 1);
}

/** D* = p / (p + q) from two smoothed densities; NaN where neither has points. */
export function optimalField(p, q) {
  const values = Float32Array.from(p, (value, k) => (value + q[k] > 1e-5 ? value / (value + q[k]) : NaN));
  return { name: "D*(x)", size: SIZE, values, low: 0, high: 1, diverging: true };
}

/** How many of `centres` have one of the samples [n, 2] within three deviations, and the share of samples that do. */
export function modesFound(samples, centres, deviation) {
  const found = new Set();
  let good = 0;
  for (let k = 0; k < samples.length; k += 2) {
    const distances = centres.map(([x, y]) => Math.hypot(samples[k] - x, samples[k + 1] - y));
    const nearest = distances.indexOf(Math.min(...distances));
    if (distances[nearest] <= 3 * deviation) {
      found.add(nearest);
      good++;
    }
  }
  return { modes: found.size, good: good / (samples.length / 2) };
}

/** The centres of the size^2 squares of the plane, row 0 at the top: Float32Array(2 * size * size). */
export function lattice(size) {
  const centre = (k) => ((k + 0.5) / size) * 2 * PLANE - PLANE, out = new Float32Array(2 * size * size);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < size; j++) {
      out[2 * (i * size + j)] = centre(j);
      out[2 * (i * size + j) + 1] = -centre(i);
    }
  }
  return out;
}

const LONGEST = 0.6;

/** Arrows [k, 4] from points [k, 2] along vectors [k, 2], scaled together so that the longest is 0.6. */
export function arrows(points, vectors) {
  let longest = 0;
  for (let k = 0; k < vectors.length; k += 2) longest = Math.max(longest, Math.hypot(vectors[k], vectors[k + 1]));
  const factor = longest > 0 ? LONGEST / longest : 0, out = new Float32Array(2 * points.length);
  for (let k = 0; k < points.length; k += 2) {
    out.set([points[k], points[k + 1], factor * vectors[k], factor * vectors[k + 1]], 2 * k);
  }
  return out;
}

/** Segments [n, 4] from points [n, 2] to points [n, 2]. */
export function segments(from, to) {
  const out = new Float32Array(2 * from.length);
  for (let k = 0; k < from.length; k += 2) out.set([from[k], from[k + 1], to[k], to[k + 1]], 2 * k);
  return out;
}

/** The field of a density in the plane, from 0 to its maximum; `logDensity([x, y])` is in nats. */
export function densityField(logDensity) {
  const points = lattice(SIZE);
  const values = Float32Array.from({ length: SIZE * SIZE }, (_, k) => Math.exp(logDensity(points.subarray(2 * k, 2 * k + 2))));
  const high = values.reduce((most, value) => Math.max(most, value), 0);
  return { name: "density", size: SIZE, values, low: 0, high, diverging: false };
}
