/**
 * Reverse-mode automatic differentiation of matrices, to any order.
 *
 * A Tensor is a matrix of 32-bit floats with the tensors it was computed from. `gradients` walks back from a scalar; the
 * backward function of each operation is itself made of operations here, so gradients with `differentiable` set can be
 * differentiated again, as gradient penalties need.
 *
 * Memory: inside `scope(body)` all results share recycled buffers, which are free again after it. What must outlive the
 * scope is copied from `.data`.
 */

// -- memory ---------------------------------------------------------------------------------------------------------

const free = new Map();
let taken = null;

function allocate(length) {
  if (!taken) return new Float32Array(length);
  const data = free.get(length)?.pop() ?? new Float32Array(length);
  taken.push(data);
  return data;
}

/** The result of `body`, whose tensors are invalid afterwards. */
export function scope(body) {
  const outer = taken;
  taken = [];
  try {
    return body();
  } finally {
    for (const data of taken) {
      if (!free.has(data.length)) free.set(data.length, []);
      free.get(data.length).push(data);
    }
    taken = outer;
  }
}

// -- tensors --------------------------------------------------------------------------------------------------------

let recording = true;
let created = 0;

export class Tensor {
  /**
   * `data` [rows * columns], row by row. `backward(gradient, wanted)` gives the gradients of `inputs` from that of this
   * tensor; where `wanted` is false it may give null.
   */
  constructor(rows, columns, data, inputs = [], backward = null) {
    this.rows = rows;
    this.columns = columns;
    this.data = data;
    this.order = created++;
    this.inputs = recording ? inputs : [];
    this.backward = recording ? backward : null;
  }

  /** The only number of a 1x1 tensor. */
  get value() {
    return this.data[0];
  }
}

/** A tensor of these numbers, without inputs. */
export const constant = (rows, columns, data) => new Tensor(rows, columns, data);

/** The same numbers without their inputs. */
export const detach = (x) => new Tensor(x.rows, x.columns, x.data);

/** The result of `body`, whose operations are not recorded. */
export function unrecorded(body) {
  const before = recording;
  recording = false;
  try {
    return body();
  } finally {
    recording = before;
  }
}

/** The gradients of the 1x1 tensor `output` with respect to each of `inputs`, zero where it does not depend on it. */
export function gradients(output, inputs, differentiable = false) {
  const wanted = new Map(inputs.map((input) => [input, true]));
  const path = [];
  const visit = (node) => {
    if (wanted.has(node)) return wanted.get(node);
    wanted.set(node, false);
    // Not `some`, which would stop at the first and leave the others unvisited.
    const depends = node.inputs.map(visit).includes(true);
    if (depends) {
      wanted.set(node, true);
      path.push(node);
    }
    return depends;
  };
  visit(output);
  path.sort((a, b) => b.order - a.order);
  const walk = () => {
    const found = new Map([[output, fill(1, 1, 1)]]);
    for (const node of path) {
      const gradient = found.get(node);
      if (!gradient) continue;
      const needs = node.inputs.map((input) => wanted.get(input));
      node.backward(gradient, needs).forEach((part, k) => {
        if (!needs[k]) return;
        const input = node.inputs[k];
        found.set(input, found.has(input) ? add(found.get(input), part) : part);
      });
    }
    return inputs.map((input) => found.get(input) ?? fill(input.rows, input.columns, 0));
  };
  return differentiable ? walk() : unrecorded(walk);
}

// -- products -------------------------------------------------------------------------------------------------------

/** A B for matrices; with `transposed` "a" A'B, with "b" AB'. */
export function matmul(a, b, transposed = "") {
  const left = transposed === "a" ? transposedData(a) : a.data, right = transposed === "b" ? transposedData(b) : b.data;
  const [rows, inner] = transposed === "a" ? [a.columns, a.rows] : [a.rows, a.columns];
  const columns = transposed === "b" ? b.rows : b.columns;
  const data = allocate(rows * columns);
  multiply(left, right, data, rows, inner, columns);
  return new Tensor(rows, columns, data, [a, b], (g, [wantsA, wantsB]) => {
    if (transposed === "a") return [wantsA && matmul(b, g, "b"), wantsB && matmul(a, g)];
    if (transposed === "b") return [wantsA && matmul(g, b), wantsB && matmul(g, a, "a")];
    return [wantsA && matmul(g, b, "b"), wantsB && matmul(a, g, "a")];
  });
}

function transposedData({ rows, columns, data }) {
  const out = allocate(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = data[i * columns + j];
  return out;
}

/** C = AB for A [n, k], B [k, m]. Blocks of 2x4 sums stay in registers; every sum runs in the same order. */
function multiply(A, B, C, n, k, m) {
  const fullRows = n - (n % 2), fullColumns = m - (m % 4);
  for (let i = 0; i < fullRows; i += 2) {
    const row0 = i * k, row1 = row0 + k;
    for (let j = 0; j < fullColumns; j += 4) {
      let c00 = 0, c01 = 0, c02 = 0, c03 = 0, c10 = 0, c11 = 0, c12 = 0, c13 = 0;
      for (let p = 0, q = j; p < k; p++, q += m) {
        const a0 = A[row0 + p], a1 = A[row1 + p];
        let b = B[q];
        c00 += a0 * b;
        c10 += a1 * b;
        b = B[q + 1];
        c01 += a0 * b;
        c11 += a1 * b;
        b = B[q + 2];
        c02 += a0 * b;
        c12 += a1 * b;
        b = B[q + 3];
        c03 += a0 * b;
        c13 += a1 * b;
      }
      const to0 = i * m + j, to1 = to0 + m;
      C[to0] = c00;
      C[to0 + 1] = c01;
      C[to0 + 2] = c02;
      C[to0 + 3] = c03;
      C[to1] = c10;
      C[to1 + 1] = c11;
      C[to1 + 2] = c12;
      C[to1 + 3] = c13;
    }
  }
  for (let i = 0; i < n; i++) {
    for (let j = i < fullRows ? fullColumns : 0; j < m; j++) {
      let sum = 0;
      for (let p = 0, q = j; p < k; p++, q += m) sum += A[i * k + p] * B[q];
      C[i * m + j] = sum;
    }
  }
}

// -- shapes ---------------------------------------------------------------------------------------------------------

const fill = (rows, columns, value) => new Tensor(rows, columns, allocate(rows * columns).fill(value));

/** x repeated along each dimension of size 1 to [rows, columns]. */
function expand(x, rows, columns) {
  if (x.rows === rows && x.columns === columns) return x;
  const data = allocate(rows * columns);
  const down = x.rows === 1 ? 0 : x.columns, across = x.columns === 1 ? 0 : 1;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) data[i * columns + j] = x.data[i * down + j * across];
  }
  return new Tensor(rows, columns, data, [x], (g) => [reduce(g, x.rows, x.columns)]);
}

/** x summed along each dimension that is 1 in [rows, columns]. */
export function reduce(x, rows, columns) {
  if (x.rows === rows && x.columns === columns) return x;
  const sums = new Float64Array(rows * columns);
  const down = rows === 1 ? 0 : columns, across = columns === 1 ? 0 : 1;
  for (let i = 0; i < x.rows; i++) {
    for (let j = 0; j < x.columns; j++) sums[i * down + j * across] += x.data[i * x.columns + j];
  }
  const data = allocate(rows * columns);
  data.set(sums);
  return new Tensor(rows, columns, data, [x], (g) => [expand(g, x.rows, x.columns)]);
}

/** The same numbers, row by row, in another shape. */
export function reshape(x, rows, columns) {
  return new Tensor(rows, columns, x.data, [x], (g) => [reshape(g, x.rows, x.columns)]);
}

/** Columns `from` to `to` - 1 of x. */
export function columns(x, from, to) {
  const width = to - from, data = allocate(x.rows * width);
  for (let i = 0; i < x.rows; i++) {
    for (let j = 0; j < width; j++) data[i * width + j] = x.data[i * x.columns + from + j];
  }
  return new Tensor(x.rows, width, data, [x], (g) => [placed(g, x.columns, from)]);
}

/** The columns of x at `from` in a matrix of zeros with `width` columns. */
function placed(x, width, from) {
  const data = allocate(x.rows * width).fill(0);
  for (let i = 0; i < x.rows; i++) {
    for (let j = 0; j < x.columns; j++) data[i * width + from + j] = x.data[i * x.columns + j];
  }
  return new Tensor(x.rows, width, data, [x], (g) => [columns(g, from, from + x.columns)]);
}

// -- elementwise ----------------------------------------------------------------------------------------------------

/** f(x) of every number, with the gradient `slope(g, x, y)`. */
function map(x, f, slope) {
  const data = allocate(x.data.length);
  for (let k = 0; k < data.length; k++) data[k] = f(x.data[k]);
  const y = new Tensor(x.rows, x.columns, data, [x], (g) => [slope(g, x, y)]);
  return y;
}

/** a + b; b may have rows or columns of size 1, which are repeated. */
export function add(a, b) {
  const other = expand(b, a.rows, a.columns), data = allocate(a.data.length);
  for (let k = 0; k < data.length; k++) data[k] = a.data[k] + other.data[k];
  return new Tensor(a.rows, a.columns, data, [a, other], (g) => [g, g]);
}

/** a - b, as `add`. */
export function subtract(a, b) {
  const other = expand(b, a.rows, a.columns), data = allocate(a.data.length);
  for (let k = 0; k < data.length; k++) data[k] = a.data[k] - other.data[k];
  return new Tensor(a.rows, a.columns, data, [a, other], (g, [, wanted]) => [g, wanted && scale(g, -1)]);
}

/** a b of every pair of numbers, as `add`. */
export function times(a, b) {
  const other = expand(b, a.rows, a.columns), data = allocate(a.data.length);
  for (let k = 0; k < data.length; k++) data[k] = a.data[k] * other.data[k];
  return new Tensor(a.rows, a.columns, data, [a, other], (g, [wantsA, wantsB]) => [
    wantsA && times(g, other), wantsB && times(g, a),
  ]);
}

/** factor x, for a number `factor`. */
export function scale(x, factor) {
  const data = allocate(x.data.length);
  for (let k = 0; k < data.length; k++) data[k] = factor * x.data[k];
  return new Tensor(x.rows, x.columns, data, [x], (g) => [scale(g, factor)]);
}

/** x + number. */
export function shift(x, number) {
  const data = allocate(x.data.length);
  for (let k = 0; k < data.length; k++) data[k] = x.data[k] + number;
  return new Tensor(x.rows, x.columns, data, [x], (g) => [g]);
}

const LEAK = 0.2;

/** x where it is positive, otherwise LEAK x. */
export function leakyRelu(x) {
  const data = allocate(x.data.length);
  for (let k = 0; k < data.length; k++) data[k] = x.data[k] > 0 ? x.data[k] : LEAK * x.data[k];
  return new Tensor(x.rows, x.columns, data, [x], (g) => [leakyReluSlope(g, x)]);
}

/** g times the slope of leakyRelu at x, which is constant almost everywhere: only g has a gradient. */
function leakyReluSlope(g, x) {
  const data = allocate(x.data.length);
  for (let k = 0; k < data.length; k++) data[k] = x.data[k] > 0 ? g.data[k] : LEAK * g.data[k];
  return new Tensor(x.rows, x.columns, data, [g], (outer) => [leakyReluSlope(outer, x)]);
}

export const square = (x) => times(x, x);
export const exp = (x) => map(x, Math.exp, (g, _, y) => times(g, y));
export const tanh = (x) => map(x, Math.tanh, (g, _, y) => times(g, shift(scale(square(y), -1), 1)));
export const sqrt = (x) => map(x, Math.sqrt, (g, _, y) => times(g, scale(reciprocal(y), 0.5)));
export const reciprocal = (x) => map(x, (value) => 1 / value, (g, _, y) => times(g, scale(square(y), -1)));

/** 1 / (1 + e^-x), without overflow. */
export const logistic = (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));
export const sigmoid = (x) => map(x, logistic, (g, _, y) => times(g, times(y, shift(scale(y, -1), 1))));

/** log(1 + e^x), without overflow. */
export const softplus = (x) =>
  map(x, (value) => Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value))), (g, input) => times(g, sigmoid(input)));

export const sum = (x) => reduce(x, 1, 1);
export const mean = (x) => scale(sum(x), 1 / x.data.length);
