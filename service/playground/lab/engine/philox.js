/**
 * Random numbers as functions of (seed, stream, index, step): Philox4x32-10 (Salmon et al. 2011), as models/noise.py.
 *
 *   key     = (seed, stream)                 stream 0 gives the numbers of models/noise.py for this seed
 *   counter = (block, step, index, 0)
 *
 * Seeds, streams, indices and steps are whole numbers below 2^32. Training, data and samples use different streams, so
 * taking a sample or a measure changes nothing else, and an update gives the same numbers after a seek.
 */

export const SAMPLES = 0, TRAINING = 1, DATA = 2, ORDER = 3, WEIGHTS = 4;
export const CHOICE_STEP = 2 ** 32 - 2;

const words = new Uint32Array(4);

/** The high 32 bits of the product of two unsigned 32-bit numbers. */
function multiplyHigh(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const middle = a1 * b0 + (Math.imul(a0, b0) >>> 16);
  return a1 * b1 + (middle >>> 16) + ((a0 * b1 + (middle & 0xffff)) >>> 16);
}

/** Philox4x32-10 of counter (c0, c1, c2, 0) and key (k0, k1), in `words`. */
function philox(c0, c1, c2, k0, k1) {
  let c3 = 0;
  for (let round = 0; round < 10; round++) {
    const high0 = multiplyHigh(0xd2511f53, c0), low0 = Math.imul(0xd2511f53, c0);
    const high1 = multiplyHigh(0xcd9e8d57, c2), low1 = Math.imul(0xcd9e8d57, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

const toUniform = (word) => (word + 0.5) * 2 ** -32;

export class Noise {
  constructor(seed, stream) {
    this.seed = seed;
    this.stream = stream;
  }

  /** `count` random 32-bit words. */
  bits(index, step, count) {
    const out = new Uint32Array(count);
    for (let block = 0, at = 0; at < count; block++) {
      philox(block, step, index, this.seed, this.stream);
      for (let k = 0; k < 4 && at < count; k++) out[at++] = words[k];
    }
    return out;
  }

  /** One number in the open interval (0, 1). */
  uniform(index, step) {
    philox(0, step, index, this.seed, this.stream);
    return toUniform(words[0]);
  }

  /** `count` numbers in (0, 1), in double precision. */
  uniforms(index, step, count) {
    return Float64Array.from(this.bits(index, step, count), toUniform);
  }

  /** Fill `out` from `offset` with `count` standard normals, by Box and Muller (1958); returns `out`. */
  normals(index, step, count, out = new Float32Array(count), offset = 0) {
    for (let block = 0, at = 0; at < count; block++) {
      philox(block, step, index, this.seed, this.stream);
      for (let pair = 0; pair < 4 && at < count; pair += 2) {
        const radius = Math.sqrt(-2 * Math.log(toUniform(words[pair])));
        const angle = 2 * Math.PI * toUniform(words[pair + 1]);
        out[offset + at++] = radius * Math.cos(angle);
        if (at < count) out[offset + at++] = radius * Math.sin(angle);
      }
    }
    return out;
  }

  /** Standard normals for rows `first`, ..., `first + rows - 1`, each the function of its own index: [rows * size]. */
  rows(first, rows, size, step = 0) {
    const out = new Float32Array(rows * size);
    for (let row = 0; row < rows; row++) this.normals(first + row, step, size, out, row * size);
    return out;
  }

  /** A random order of 0, ..., count - 1 (Fisher and Yates). */
  permutation(step, count) {
    const order = Uint32Array.from({ length: count }, (_, k) => k);
    const random = this.bits(0, step, count);
    for (let k = count - 1; k > 0; k--) {
      const other = Math.floor(toUniform(random[k]) * (k + 1));
      [order[k], order[other]] = [order[other], order[k]];
    }
    return order;
  }
}
