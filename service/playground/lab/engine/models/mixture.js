/** Gaussian mixtures, fitted by expectation maximisation (Dempster, Laird & Rubin 1977), as models/mixture.py. */

import { PLANE } from "../catalog.js";
import { densityField } from "../measures.js";
import { CHOICE_STEP, Noise, ORDER, SAMPLES } from "../philox.js";

/** EM stops if an iteration gains less, in nats. */
const TOLERANCE = 1e-4;
const LOG_2_PI = Math.log(2 * Math.PI);

/** K Gaussians in D dimensions: weights [K], means [K, D] and lower triangles of Cholesky [K, D, D], in doubles. */
export class Mixture {
  constructor(count, size) {
    this.count = count;
    this.size = size;
    this.weights = new Float64Array(count);
    this.means = new Float64Array(count * size);
    this.cholesky = new Float64Array(count * size * size);
  }

  /** log weight_k + log N(x; mean_k, L_k L_k') for the row of x at `offset`, into `joint` [K]; returns log p(x). */
  logJoint(x, offset, joint) {
    const { count, size, means, cholesky } = this;
    this.logScales ??= Float64Array.from({ length: count }, (_, k) => {
      let logDeterminant = 0;
      for (let i = 0; i < size; i++) logDeterminant += Math.log(cholesky[(k * size + i) * size + i]);
      return Math.log(this.weights[k]) - logDeterminant - (size / 2) * LOG_2_PI;
    });
    const white = new Float64Array(size);
    let most = -Infinity;
    for (let k = 0; k < count; k++) {
      let squared = 0;
      for (let i = 0; i < size; i++) {
        const row = (k * size + i) * size;
        let rest = x[offset + i] - means[k * size + i];
        for (let j = 0; j < i; j++) rest -= cholesky[row + j] * white[j];
        white[i] = rest / cholesky[row + i];
        squared += white[i] * white[i];
      }
      joint[k] = this.logScales[k] - squared / 2;
      if (joint[k] > most) most = joint[k];
    }
    let sum = 0;
    for (let k = 0; k < count; k++) sum += Math.exp(joint[k] - most);
    return most + Math.log(sum);
  }

  logDensity(x, offset = 0) {
    return this.logJoint(x, offset, new Float64Array(this.count));
  }

  /** Row `index` of samples, as `Mixture.sample` of models/mixture.py: the component by one number, the rest by eps. */
  sample(noise, index) {
    const { count, size, means, cholesky } = this;
    const total = this.weights.reduce((sum, weight) => sum + weight, 0), eps = noise.normals(index, 0, size);
    const choice = noise.uniform(index, CHOICE_STEP) * total;
    let k = 0, edge = this.weights[0];
    while (choice >= edge && k < count - 1) edge += this.weights[++k];
    return Array.from({ length: size }, (_, i) => {
      let value = means[k * size + i];
      for (let j = 0; j <= i; j++) value += cholesky[(k * size + i) * size + j] * eps[j];
      return value;
    });
  }

  /** [{weight, mean: [x, y], covariance: [xx, xy, yy]}] of a mixture in the plane. */
  components() {
    return Array.from(this.weights, (weight, k) => {
      const [a, , b, c] = this.cholesky.subarray(4 * k, 4 * k + 4);
      return { weight, mean: [...this.means.subarray(2 * k, 2 * k + 2)], covariance: [a * a, a * b, b * b + c * c] };
    });
  }
}

/** EM on points x [n, size]: the mixture after the M-step of k-means++, then one iteration per `iterate`. */
export class Em {
  /** `prior` times the mean variance is added to every component's scatter; 0 is plain maximum likelihood. */
  constructor(x, size, count, { prior, seed }) {
    Object.assign(this, { x, size, n: x.length / size, count });
    let variance = 0;
    for (let i = 0; i < size; i++) {
      let mean = 0;
      for (let at = i; at < x.length; at += size) mean += x[at] / this.n;
      for (let at = i; at < x.length; at += size) variance += (x[at] - mean) ** 2 / Math.max(this.n - 1, 1) / size;
    }
    this.scatter = Math.max(prior * variance, 1e-12);
    this.responsibilities = this.assigned(kMeansPlusPlus(x, size, count, seed));
    this.iterate();
  }

  /** Responsibilities [n, K] of 1 for the nearest centre. */
  assigned(centres) {
    const out = new Float64Array(this.n * this.count);
    for (let row = 0; row < this.n; row++) {
      let nearest = 0, least = Infinity;
      centres.forEach((centre, k) => {
        const distance = squaredDistance(this.x, row * this.size, this.x, centre * this.size, this.size);
        if (distance < least) [nearest, least] = [k, distance];
      });
      out[row * this.count + nearest] = 1;
    }
    return out;
  }

  /** The M-step from the responsibilities, then the E-step and the objective of the new mixture. */
  iterate() {
    const { x, n, size, count, scatter } = this;
    this.mixture = maximise(x, n, size, count, this.responsibilities, scatter);
    const joint = new Float64Array(count), responsibilities = new Float64Array(n * count);
    this.likelihood = 0;
    for (let row = 0; row < n; row++) {
      const density = this.mixture.logJoint(x, row * size, joint);
      this.likelihood += density / n;
      for (let k = 0; k < count; k++) responsibilities[row * count + k] = Math.exp(joint[k] - density);
    }
    this.responsibilities = responsibilities;
    this.objective = this.likelihood - (scatter / 2) * (precisionTraces(this.mixture) / n);
  }

  state() {
    const { mixture, responsibilities, likelihood, objective } = this;
    return { mixture, responsibilities, likelihood, objective }; // replaced as a whole, never changed
  }
}

function maximise(x, n, size, count, responsibilities, scatter) {
  const mixture = new Mixture(count, size), mass = new Float64Array(count);
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < count; k++) {
      const share = responsibilities[row * count + k];
      mass[k] += share;
      for (let i = 0; i < size; i++) mixture.means[k * size + i] += share * x[row * size + i];
    }
  }
  for (let k = 0; k < count; k++) mass[k] = Math.max(mass[k], 1e-8);
  const total = mass.reduce((sum, value) => sum + value, 0);
  for (let k = 0; k < count; k++) {
    mixture.weights[k] = mass[k] / total;
    for (let i = 0; i < size; i++) mixture.means[k * size + i] /= mass[k];
    const covariance = mixture.cholesky.subarray(k * size * size, (k + 1) * size * size);
    for (let i = 0; i < size; i++) covariance[i * size + i] = scatter;
    for (let row = 0; row < n; row++) {
      const share = responsibilities[row * count + k];
      if (share === 0) continue;
      for (let i = 0; i < size; i++) {
        const left = share * (x[row * size + i] - mixture.means[k * size + i]);
        for (let j = 0; j <= i; j++) covariance[i * size + j] += left * (x[row * size + j] - mixture.means[k * size + j]);
      }
    }
    for (let i = 0; i < covariance.length; i++) covariance[i] /= mass[k];
    factorise(covariance, size);
  }
  return mixture;
}

/** The Cholesky factor in place of the lower triangle of a covariance [size, size]. */
function factorise(matrix, size) {
  for (let i = 0; i < size; i++) {
    for (let j = 0; j <= i; j++) {
      let rest = matrix[i * size + j];
      for (let k = 0; k < j; k++) rest -= matrix[i * size + k] * matrix[j * size + k];
      // Rounding may leave a variance below 0 where all points of a component are on a line.
      matrix[i * size + j] = i === j ? Math.sqrt(Math.max(rest, 1e-14)) : rest / matrix[j * size + j];
    }
  }
}

/** The sum over the components of the trace of the inverse covariance. */
function precisionTraces({ count, size, cholesky }) {
  let total = 0;
  for (let k = 0; k < count; k++) {
    const L = cholesky.subarray(k * size * size, (k + 1) * size * size);
    for (let unit = 0; unit < size; unit++) {
      const column = new Float64Array(size); // of the inverse of L
      for (let i = unit; i < size; i++) {
        let rest = i === unit ? 1 : 0;
        for (let j = unit; j < i; j++) rest -= L[i * size + j] * column[j];
        column[i] = rest / L[i * size + i];
        total += column[i] * column[i];
      }
    }
  }
  return total;
}

/** The rows of `count` centres, each chosen by its squared distance to the earlier ones (Arthur & Vassilvitskii 2007). */
function kMeansPlusPlus(x, size, count, seed) {
  const n = x.length / size, noise = new Noise(seed, ORDER), random = noise.uniforms(1, 0, count);
  const centres = [Math.floor(random[0] * n)], nearest = new Float64Array(n).fill(Infinity);
  while (centres.length < count) {
    const last = centres.at(-1) * size;
    let total = 0;
    for (let row = 0; row < n; row++) {
      nearest[row] = Math.min(nearest[row], squaredDistance(x, row * size, x, last, size));
      total += nearest[row];
    }
    let left = random[centres.length] * (total || n), row = -1;
    do left -= total ? nearest[++row] : (row++, 1); // fewer distinct points than centres: any
    while (left > 0 && row < n - 1);
    centres.push(row);
  }
  return centres;
}

function squaredDistance(a, i, b, j, size) {
  let sum = 0;
  for (let k = 0; k < size; k++) sum += (a[i + k] - b[j + k]) ** 2;
  return sum;
}

/** One iteration of EM per update. Update 0 is the M-step of the initial assignment. */
export class Gmm {
  constructor({ components, prior_strength: prior, seed }, points) {
    this.em = new Em(points, 2, components, { prior, seed });
    this.noise = new Noise(seed, SAMPLES);
    this.finished = false;
  }

  update() {
    const before = this.em.objective;
    this.em.iterate();
    this.finished = this.em.objective - before < TOLERANCE;
  }

  state() {
    return { em: this.em.state(), finished: this.finished };
  }

  restore({ em, finished }) {
    Object.assign(this.em, em);
    this.finished = finished;
  }

  sample(count) {
    return Float32Array.from(Array.from({ length: count }, (_, k) => this.em.mixture.sample(this.noise, k)).flat());
  }

  curves(reference) {
    const { mixture, likelihood, objective } = this.em;
    return {
      "log-likelihood": meanLogDensity(reference, (offset) => mixture.logDensity(reference, offset)),
      "log-likelihood of the training points": likelihood,
      objective,
    };
  }

  layers() {
    const { mixture } = this.em;
    return { field: densityField((x) => mixture.logDensity(x)), components: mixture.components() };
  }
}

/** The likeliest Gaussian, after the only update. Update 0 is a round one as wide as the plane. */
export class Gaussian extends Gmm {
  constructor({ seed }, points) {
    super({ components: 1, prior_strength: 0.05, seed }, points);
    this.em.mixture = new Mixture(1, 2);
    this.em.mixture.weights[0] = 1;
    this.em.mixture.cholesky.set([PLANE / 2, 0, 0, PLANE / 2]);
    this.em.likelihood = meanLogDensity(points, (offset) => this.em.mixture.logDensity(points, offset));
    this.em.objective = this.em.likelihood;
  }

  update() {
    this.em.iterate();
    this.finished = true;
  }
}

/** The mean of logDensity(offset) over the rows of points [n, 2]. */
export function meanLogDensity(points, logDensity) {
  let total = 0;
  for (let offset = 0; offset < points.length; offset += 2) total += logDensity(offset);
  return total / (points.length / 2);
}
