/** Diffusion, rectified flow and MeanFlow for points: ddpm.py, flow.py and meanflow.py of models/families, with their PointDenoiser. */

import { arrows, lattice, segments } from "../measures.js";
import { Adam, Mlp, hiddenWidths } from "../nets.js";
import { constant, mean, reduce, scale, shift, sqrt, square, subtract, times, unrecorded } from "../tensor.js";
import { Trained, fromPlane, toPlane } from "./trained.js";

const FREQUENCIES = 6;
const INPUTS = 2 + 2 * FREQUENCIES;
const UNIFORM_SHARE = 0.25;
const TIMESTEPS = 1000, FIRST_ANGLE = 0.01, LAST_ANGLE = (0.98 * Math.PI) / 2, MIN_SIGMA = 0.3;
const MIN_REMAINING_TIME = 0.25;
const PATH_STEPS = 5, WHOLE_SHARE = 0.75, MIN_SPAN = 1 / 16, HUBER = 0.03, SPAN_FEATURES = 8, SPAN_SCALE = 4;
const ARROWS = 16, LINES = 60;

class Denoiser extends Trained {
  static sampleCount = 400;

  constructor(settings, points) {
    super(settings, points);
    this.net = new Mlp([INPUTS, ...hiddenWidths(settings.hidden), 2], settings.seed, 0);
    this.optimizers = [new Adam(this.net)];
    [this.sampler] = this.averaged(this.net);
  }

  /** The data predicted from noisy data [B * 2] at the time of each row, and for its span if the net has one: tensor [B, 2]. */
  predict(net, noisy, timeOf, spanOf = null) {
    const width = spanOf ? INPUTS + SPAN_FEATURES : INPUTS;
    const rows = noisy.length / 2, inputs = new Float32Array(rows * width);
    for (let row = 0; row < rows; row++) {
      const at = row * width, time = timeOf(row);
      inputs[at] = noisy[2 * row];
      inputs[at + 1] = noisy[2 * row + 1];
      for (let k = 0; k < FREQUENCIES; k++) {
        const angle = Math.PI * 2 ** k * time;
        inputs[at + 2 + k] = Math.cos(angle);
        inputs[at + 2 + FREQUENCIES + k] = Math.sin(angle);
      }
      for (let k = INPUTS; k < width; k++) {
        inputs[at + k] = SPAN_SCALE * Math.sin((Math.PI / 2) * spanOf(row) * (k - INPUTS + 1));
      }
    }
    return net.forward(constant(rows, width, inputs));
  }

  /** Update the net to predict x from mixtures of x and noise. `mixing()` gives {time, signal, noise, weight} of a row. */
  train(lr) {
    const x = this.batches.get(this.done), eps = this.randn(x.rows, 2).data;
    const [normal, uniform, kind] = [this.randn(x.rows, 1).data, this.rand(x.rows), this.rand(x.rows)];
    const rows = Array.from({ length: x.rows }, (_, k) =>
      this.mixing(0.8 * normal[k] - 0.8, uniform[k], kind[k] < UNIFORM_SHARE));
    const noisy = x.data.map((value, k) => rows[k >> 1].signal * value + rows[k >> 1].noise * eps[k]);
    const predicted = this.predict(this.net, noisy, (row) => rows[row].time);
    const weights = constant(x.rows, 1, Float32Array.from(rows, ({ weight }) => weight));
    const loss = mean(square(times(subtract(predicted, x), weights)));
    this.optimizers[0].minimise(loss, lr);
    this.terms = { loss: loss.value };
  }

  /** The predicted data [n * 2] at noisy data [n * 2] and one time. */
  predicted(noisy, time) {
    return this.evaluate(() => this.predict(this.sampler, noisy, () => time).data.slice());
  }

  sample(count) {
    return this.evaluate(() => toPlane({ data: this.denoise(this.noise.rows(0, count, 2)) }));
  }

  /** The score or the velocity on a lattice. */
  layers() {
    const places = lattice(ARROWS), x = fromPlane(places).data;
    return { arrows: arrows(places, this.direction(x)) };
  }
}

const clamp = (value) => Math.max(-1, Math.min(1, value));

export class Ddpm extends Denoiser {
  mixing(logSnr, uniform, isUniform) {
    const share = (Math.atan(Math.exp(-logSnr)) - FIRST_ANGLE) / (LAST_ANGLE - FIRST_ANGLE);
    const noisy = Math.max(0, Math.min(TIMESTEPS - 1, Math.round(share * (TIMESTEPS - 1))));
    const t = isUniform ? Math.floor(uniform * TIMESTEPS) : noisy, { alpha, sigma } = diffusionScales(t);
    return { time: (t + 1) / TIMESTEPS, signal: alpha, noise: sigma, weight: 1 / Math.max(sigma, MIN_SIGMA) };
  }

  /** The chain from noise [n * 2] to data. */
  denoise(x) {
    let previous = new Float32Array(x.length);
    const lines = diffusionSchedule(this.settings.steps, this.settings.sampler);
    lines.forEach(([time, toX, toData, toPrevious, deviation], k) => {
      const data = this.predicted(x, time).map(clamp);
      const fresh = deviation ? this.noise.rows(0, x.length / 2, 2, k + 1) : null;
      x = x.map((value, i) => {
        const added = fresh ? deviation * fresh[i] : 0;
        return toX * value + toData * data[i] + toPrevious * previous[i] + added;
      });
      previous = data;
    });
    return x.map(clamp);
  }

  /** The score: (alpha x_0 - x_t) / sigma^2 at the time that is shown. */
  direction(x) {
    const t = Math.max(1, Math.round(this.settings.time * TIMESTEPS)), { alpha, sigma } = diffusionScales(t - 1);
    const data = this.predicted(x, t / TIMESTEPS);
    return data.map((value, k) => (alpha * value - x[k]) / sigma ** 2);
  }
}

/** sqrt(abar_t) and sqrt(1 - abar_t) for t in 0, ..., TIMESTEPS - 1: cosine_schedule of models/families/ddpm.py. */
function diffusionScales(t) {
  const abar = Math.fround(Math.cos(FIRST_ANGLE + ((LAST_ANGLE - FIRST_ANGLE) * t) / (TIMESTEPS - 1)) ** 2);
  return { alpha: Math.sqrt(abar), sigma: Math.sqrt(1 - abar) };
}

/** Lines [time, factors of x, x_0, the previous x_0 and noise], as `DDPM.schedule`. */
export function diffusionSchedule(steps, sampler) {
  const left = Array.from({ length: steps }, (_, k) => steps - k);
  const t = left.map((value) => Math.max(roundEven(TIMESTEPS * (value / steps) ** 1.5), value) - 1);
  const scales = [...t.map(diffusionScales), { alpha: 1, sigma: 0 }]; // the last step ends at the data
  const halfLogSnr = t.map((_, k) => Math.log(scales[k].alpha / scales[k].sigma));
  return t.map((time, k) => {
    const { alpha, sigma } = scales[k], next = scales[k + 1];
    const ratio = 1 - (alpha / next.alpha) ** 2;
    const deviation = sampler === "ddpm" ? (next.sigma / sigma) * Math.sqrt(Math.max(ratio, 0)) : 0;
    const toX = Math.sqrt(Math.max(next.sigma ** 2 - deviation ** 2, 0)) / sigma, toData = next.alpha - toX * alpha;
    const inner = sampler === "dpm++2m" && k > 0 && k < steps - 1;
    const more = inner ? (halfLogSnr[k + 1] - halfLogSnr[k]) / (2 * (halfLogSnr[k] - halfLogSnr[k - 1])) : 0;
    return [(time + 1) / TIMESTEPS, toX, toData * (1 + more), -toData * more, deviation];
  });
}

/** Halves go to the even number, as torch rounds. */
function roundEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

export class Flow extends Denoiser {
  mixing(logSnr, uniform, isUniform) {
    const time = isUniform ? uniform : 1 / (1 + Math.exp(-logSnr));
    return { time, signal: time, noise: 1 - time, weight: 1 / Math.max(1 - time, MIN_REMAINING_TIME) };
  }

  denoise(x) {
    let memory = x;
    for (const [time, ofState, fromState, ofMemory] of flowSchedule(this.settings.steps, this.settings.sampler)) {
      const data = this.predicted(x, time), base = fromState ? x : memory;
      const velocity = data.map((value, k) => (clamp(value) - x[k]) / (1 - time));
      x = base.map((value, k) => value + ofState * velocity[k]);
      memory = base.map((value, k) => value + ofMemory * velocity[k]);
    }
    return x.map(clamp);
  }

  /** The velocity (x_1 - x_t) / (1 - t) at the time that is shown. */
  direction(x) {
    const { time } = this.settings;
    return this.predicted(x, time).map((value, k) => (value - x[k]) / (1 - time));
  }

  /** Also lines from noise to samples. */
  layers() {
    return { ...super.layers(), segments: segments(toPlane({ data: this.noise.rows(0, LINES, 2) }), this.sample(LINES)) };
  }
}

/** Lines [time, step of the state, whether from the state or from the memory, step of the memory], as `Flow.schedule`. */
export function flowSchedule(steps, sampler) {
  const pairs = sampler === "heun" ? Math.floor((steps - 1) / 2) : 0, size = 1 / steps, lines = [];
  for (let k = 0; k < 2 * pairs; k += 2) lines.push([k * size, 2 * size, 1, size], [(k + 2) * size, size, 0, size]);
  for (let k = 2 * pairs; k < steps; k++) lines.push([k * size, size, 1, 0]);
  return lines;
}

/**
 * The average velocity u over an interval. `net` learns the velocity v as in Flow, and `meanNet` learns u from paths that
 * follow v: it predicts x + (1 - time) u.
 */
export class MeanFlow extends Flow {
  constructor(settings, points) {
    super(settings, points);
    this.meanNet = new Mlp([INPUTS + SPAN_FEATURES, ...hiddenWidths(settings.hidden), 2], settings.seed, 1);
    this.optimizers.push(new Adam(this.meanNet));
    [this.sampler] = this.averaged(this.meanNet);
  }

  /** One update of v, then one of u on the same batch. */
  train(lr) {
    super.train(lr);
    const x = this.batches.get(this.done), eps = this.randn(x.rows, 2).data;
    const [uniform, length, kind] = [this.rand(x.rows), this.rand(x.rows), this.rand(x.rows)];
    const spans = length.map((value, k) => (kind[k] < WHOLE_SHARE ? 1 : MIN_SPAN + (1 - MIN_SPAN) * value));
    const starts = uniform.map((value, k) => (1 - spans[k]) * value);
    const state = x.data.map((value, k) => eps[k] + starts[k >> 1] * (value - eps[k]));
    const target = constant(x.rows, 2, this.pathTarget(state, starts, spans));
    const predicted = this.predict(this.meanNet, state, (row) => starts[row], (row) => spans[row]);
    const weights = Float32Array.from(starts, (start) => 1 / Math.max(1 - start, MIN_REMAINING_TIME));
    const errors = square(times(subtract(predicted, target), constant(x.rows, 1, weights)));
    const loss = mean(sqrt(shift(scale(reduce(errors, x.rows, 1), 0.5), HUBER ** 2)));
    this.optimizers[1].minimise(loss, lr);
    this.terms = { ...this.terms, "loss of u": loss.value };
  }

  /** x + (1 - start) u for each x [B * 2], start [B] and span [B], by Euler steps along v. */
  pathTarget(x, starts, spans) {
    let state = x;
    for (let k = 0; k < PATH_STEPS; k++) {
      const timeOf = (row) => starts[row] + (k / PATH_STEPS) * spans[row];
      const data = unrecorded(() => this.predict(this.net, state, timeOf).data);
      state = state.map((value, i) =>
        value + ((spans[i >> 1] / PATH_STEPS) * (clamp(data[i]) - value)) / (1 - timeOf(i >> 1)));
    }
    return x.map((value, i) => value + ((1 - starts[i >> 1]) / spans[i >> 1]) * (state[i] - value));
  }

  /** x + (1 - time) u of noisy data [n * 2] for intervals of one length, by default to the end of the path. */
  predicted(noisy, time, span = 1 - time) {
    return this.evaluate(() => this.predict(this.sampler, noisy, () => time, () => span).data.slice());
  }

  denoise(x) {
    const { steps } = this.settings;
    for (let k = 0; k < steps; k++) {
      const data = this.predicted(x, k / steps, 1 / steps);
      x = x.map((value, i) => value + (clamp(data[i]) - value) / (steps - k));
    }
    return x;
  }
}
