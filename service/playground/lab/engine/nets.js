/** Fully connected networks and their training: the initial weights of torch, Adam, and the families' schedules. */

import { Noise, ORDER, WEIGHTS } from "./philox.js";
import { add, constant, gradients, leakyRelu, matmul } from "./tensor.js";

/** Layers of the given widths with LeakyReLU(0.2) between, as MLP of models/nets.py: [B, widths[0]] -> [B, last]. */
export class Mlp {
  /** Weights and biases are uniform within 1 / sqrt(inputs), as torch initialises linear layers. */
  constructor(widths, seed, index) {
    const noise = new Noise(seed, WEIGHTS);
    this.parameters = widths.slice(1).flatMap((outputs, layer) => {
      const inputs = widths[layer], bound = 1 / Math.sqrt(inputs);
      const random = noise.uniforms(index, layer, (inputs + 1) * outputs).map((u) => bound * (2 * u - 1));
      return [
        constant(inputs, outputs, Float32Array.from(random.subarray(0, inputs * outputs))),
        constant(1, outputs, Float32Array.from(random.subarray(inputs * outputs))),
      ];
    });
  }

  forward(x) {
    const last = this.parameters.length - 2;
    for (let k = 0; k <= last; k += 2) {
      x = add(matmul(x, this.parameters[k]), this.parameters[k + 1]);
      if (k < last) x = leakyRelu(x);
    }
    return x;
  }
}

/** Adam (Kingma & Ba 2015) with the defaults of torch, for the parameters of `net`. */
export class Adam {
  constructor(net, beta1 = 0.9, beta2 = 0.999) {
    this.net = net;
    this.betas = [beta1, beta2];
    this.means = net.parameters.map(({ data }) => new Float32Array(data.length));
    this.squares = net.parameters.map(({ data }) => new Float32Array(data.length));
    this.steps = 0;
  }

  /** One step down the gradient of the 1x1 tensor `loss`. */
  minimise(loss, lr) {
    const slopes = gradients(loss, this.net.parameters);
    const [beta1, beta2] = this.betas;
    this.steps++;
    const rate = lr / (1 - beta1 ** this.steps), correction = 1 / Math.sqrt(1 - beta2 ** this.steps);
    this.net.parameters.forEach(({ data }, k) => {
      const slope = slopes[k].data, mean = this.means[k], square = this.squares[k];
      for (let i = 0; i < data.length; i++) {
        const g = slope[i], m = beta1 * mean[i] + (1 - beta1) * g, v = beta2 * square[i] + (1 - beta2) * g * g;
        mean[i] = m;
        square[i] = v;
        data[i] -= (rate * m) / (Math.sqrt(v) * correction + 1e-8);
      }
    });
  }

  /** All arrays that decide how training continues, and the number of steps. */
  arrays() {
    return [...this.net.parameters.map(({ data }) => data), ...this.means, ...this.squares];
  }
}

/** The weights of `net`, averaged over training as `update_average` of training/loop.py. */
export class Average {
  constructor(net, halfLife) {
    this.net = Object.assign(Object.create(Object.getPrototypeOf(net)), net);
    this.source = net;
    this.halfLife = halfLife;
    this.net.parameters = net.parameters.map(({ rows, columns, data }) => constant(rows, columns, data.slice()));
  }

  /** Update after `images` points in all, `batch` of them new. */
  update(images, batch) {
    const halfLife = Math.min(this.halfLife, 0.05 * images);
    const weight = halfLife ? 1 - 0.5 ** (batch / halfLife) : 1;
    this.net.parameters.forEach(({ data }, k) => {
      const from = this.source.parameters[k].data;
      for (let i = 0; i < data.length; i++) data[i] += weight * (from[i] - data[i]);
    });
  }

  arrays() {
    return this.net.parameters.map(({ data }) => data);
  }
}

/** The learning rate of 0-based `update` of `updates`: constant, or half a cosine down to 0. */
export function learningRate({ lr, decay, updates }, update) {
  return decay === "cosine" ? (lr / 2) * (1 + Math.cos((Math.PI * update) / updates)) : lr;
}

/** Batches of the rows of points [N, 2]: every epoch is a random order, and a batch may span epochs. */
export class Batches {
  constructor(points, batch, seed) {
    this.points = points;
    this.count = points.length / 2;
    this.batch = batch;
    this.noise = new Noise(seed, ORDER);
    this.epoch = -1;
  }

  /** Batch `number` (0, 1, ...), as [batch, 2]. */
  get(number) {
    const data = new Float32Array(2 * this.batch);
    for (let k = 0; k < this.batch; k++) {
      const position = number * this.batch + k, epoch = Math.floor(position / this.count);
      if (epoch !== this.epoch) {
        this.epoch = epoch;
        this.order = this.noise.permutation(epoch, this.count);
      }
      const row = this.order[position % this.count];
      data[2 * k] = this.points[2 * row];
      data[2 * k + 1] = this.points[2 * row + 1];
    }
    return constant(this.batch, 2, data);
  }
}

/** The widths of hidden layers from a setting such as "64-64". */
export const hiddenWidths = (text) => text.split("-").map(Number);
