/** min over x, max over y of V = xy: the steps of training/lab/experiments/xy_game.py, in double precision. */

import { arrows, lattice } from "../measures.js";

/** (dV/dx, -dV/dy), which both players descend. */
const slope = ([x, y]) => [y, -x];
const moved = ([x, y], factor, [a, b]) => [x + factor * a, y + factor * b];

/** The next point from the current one, the previous one and eta. */
const PLAYS = {
  simultaneous: (z, _, eta) => moved(z, -eta, slope(z)),
  alternating: ([x, y], _, eta) => {
    const next = x - eta * y;
    return [next, y + eta * next];
  },
  extragradient: (z, _, eta) => moved(z, -eta, slope(moved(z, -eta, slope(z)))),
  optimistic: (z, previous, eta) => moved(moved(z, -2 * eta, slope(z)), eta, slope(previous)),
};

export class XyGame {
  constructor({ play, eta, x, y, updates }) {
    this.play = PLAYS[play];
    this.eta = eta;
    this.updates = updates;
    this.all = [[x, y]];
    this.done = 0;
  }

  update() {
    this.done++;
    const last = this.all.at(-1);
    if (this.done === this.all.length) this.all.push(this.play(last, this.all.at(-2) ?? last, this.eta));
  }

  get finished() {
    return this.done >= this.updates;
  }

  /** The path never changes, so its length is the whole state. */
  state() {
    return this.done;
  }

  restore(done) {
    this.done = done;
  }

  sample() {
    return Float32Array.from(this.all[this.done]);
  }

  curves() {
    const [x, y] = this.all[this.done];
    return { x, y, "V = xy": x * y, radius: Math.hypot(x, y) };
  }

  layers() {
    const points = lattice(12), directions = points.map((_, k) => (k % 2 ? points[k - 1] : -points[k + 1]));
    const lines = this.all.slice(1, this.done + 1).flatMap((point, k) => [...this.all[k], ...point]);
    return { segments: Float32Array.from(lines), arrows: arrows(points, directions) };
  }
}
